"""What the load test knows without Locust: how a stream is heard, how a load goes, what is to be met."""

import subprocess
import sys

import pytest

from crowd.answer import Answer
from crowd.levels import users
from crowd.promises import How, ending
from crowd.settings import Key, keys, weights
from crowd.sse import Stream
from crowd.targets import USUAL, Target, targets
from deploy import slo
from tests.support.processes import ROOT

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"so"}}]}\n\n'
THOUGHT = b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"


def heard(*events: bytes) -> Stream:
    """One a second, the first at second 1."""
    stream = Stream()
    for at, event in enumerate(events, 1):
        stream.hear(event, float(at))
    return stream


def test_the_first_token_is_the_first_text_and_not_the_role_before_it() -> None:
    assert heard(ROLE, b": still here\n\n", WORD, WORD, USAGE, DONE).first_at == 3
    assert heard(ROLE, THOUGHT, WORD).first_at == 2
    assert heard(ROLE, USAGE, DONE).first_at is None


def test_tokens_are_as_the_engine_counts_them_and_events_only_where_it_did_not() -> None:
    whole = heard(ROLE, WORD, WORD, WORD, USAGE, DONE)
    assert (whole.tokens, whole.per_token_s, whole.gaps_s) == (5, 2 / 4, [1, 1])
    left = heard(ROLE, WORD, WORD, WORD)
    assert (left.tokens, left.per_token_s) == (3, 1)
    assert heard(ROLE, WORD).per_token_s is None


def test_an_id_line_before_the_data_changes_nothing() -> None:
    assert heard(b"id: 7\n" + WORD).pieces == 1


@pytest.mark.parametrize(
    ("status", "head", "body", "how"),
    [
        (429, {"retry-after": "3", "x-request-id": "1"}, b'{"error": {"code": "rate_limit"}}', How.REFUSED),
        (503, {"retry-after": "soon", "x-request-id": "1"}, b'{"error": {"code": "queue_full"}}', How.BROKEN),
        (503, {"retry-after": "3"}, b'{"error": {"code": "queue_full"}}', How.BROKEN),
        (503, {"retry-after": "3", "x-request-id": "1"}, b"<html>", How.BROKEN),
        (429, {"x-should-retry": "false", "x-request-id": "1"}, b'{"error": {"code": "too_large"}}', How.FAILED),
        (504, {"x-request-id": "1"}, b'{"error": {"code": "deadline_exceeded"}}', How.REFUSED),
        (502, {"x-request-id": "1"}, b'{"error": {"code": "engine_failed"}}', How.FAILED),
        (500, {}, b"oops", How.BROKEN),
    ],
)
def test_an_error_is_an_answer_if_it_is_an_honest_one(status: int, head: dict[str, str], body: bytes, how: How) -> None:
    assert ending(Answer(0.0, status=status, headers=head, body=body)).how is how


def test_a_stream_that_ran_out_of_the_time_it_was_given_was_refused_late() -> None:
    late = heard(ROLE, WORD, b'data: {"error":{"code":"deadline_exceeded"}}\n\n')
    dead = heard(ROLE, WORD, b'data: {"error":{"code":"engine_interrupted"}}\n\n')
    assert ending(Answer(0.0, status=200, stream=late)).how is How.REFUSED
    assert ending(Answer(0.0, status=200, stream=dead)).how is How.FAILED


def test_shapes() -> None:
    def over(shape: str) -> list[int]:
        return [users(shape, tenth / 10, 20) for tenth in range(11)]

    assert over("steady") == [20] * 11
    assert over("spike") == [20, 20, 20, 20, 200, 200, 20, 20, 20, 20, 20]
    assert over("overload") == [10, 10, 20, 20, 30, 30, 40, 40, 60, 60, 60]
    assert users("overload", 0, 1) == 1


def test_the_usual_objectives_are_those_of_the_service() -> None:
    shares = {objective.name: round(objective.share * 100, 6) for objective in slo.OBJECTIVES}
    seconds = {"ttft": slo.TTFT_S, "tpot": slo.TPOT_S, "availability": None}
    assert set(targets(USUAL)) == {Target(name, shares[name], seconds[name]) for name in shares}


def test_weights_and_keys_are_read_as_they_are_written() -> None:
    assert weights("chat=3, stream=0,burst=1") == {"chat": 3, "burst": 1}
    assert keys("") == (Key(""),)
    assert keys("one,alice=two") == (Key("key 1", "one"), Key("alice", "two"))


def test_none_of_this_changes_the_process_that_imports_it() -> None:
    code = "import crowd.promises, crowd.settings, crowd.levels, sys; sys.exit('gevent' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "deploy" / "locust")
