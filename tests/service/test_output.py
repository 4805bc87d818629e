"""Answers as servers send them."""

import msgspec
import pytest

from gllm.service.output import Logprob, ResponseOutput, chat_outputs, refusal, text_outputs


def sent(**choice: object) -> bytes:
    return msgspec.json.encode({"id": "1", "choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": {}})


def told(id_: int, logprob: float, text: str, **more: object) -> dict[str, object]:
    return {"token": f"token_id:{id_}", "logprob": logprob, "bytes": list(text.encode()), **more}


def test_answers_come_in_the_order_of_their_numbers() -> None:
    choices = [{"index": place, "text": text} for place, text in ((2, "c"), (0, "a"), (1, "b"))]
    assert [each.text for each in text_outputs(msgspec.json.encode({"choices": choices}))] == ["a", "b", "c"]


def test_an_answer_without_text_is_an_empty_one() -> None:
    assert chat_outputs(sent(message={"role": "assistant", "content": None})) == [ResponseOutput("")]


def test_logprobs_of_a_chat_are_by_token_id_with_the_chosen_first() -> None:
    alternatives = [told(7, -0.1, "yes"), {"token": "token_id:9", "logprob": -2.5, "bytes": list(b"token_id:9")}]
    logprobs = {"content": [told(3, -3.0, "no", top_logprobs=alternatives)]}
    (output,) = chat_outputs(sent(message={"content": "no"}, logprobs=logprobs))
    assert output.logprobs == [{3: Logprob(-3.0, "no"), 7: Logprob(-0.1, "yes"), 9: Logprob(-2.5)}]
    assert list(output.logprobs[0]) == [3, 7, 9]


def test_a_chosen_token_that_is_among_the_likely_ones_stays_the_first() -> None:
    logprobs = {"content": [told(3, -1.0, "no", top_logprobs=[told(7, -0.5, "yes"), told(3, -1.0, "token_id:3")])]}
    (output,) = chat_outputs(sent(message={"content": "no"}, logprobs=logprobs))
    assert output.logprobs == [{3: Logprob(-1.0, "no"), 7: Logprob(-0.5, "yes")}]
    assert list(output.logprobs[0]) == [3, 7]


def test_logprobs_of_a_text_are_by_token_id_too() -> None:
    logprobs = {
        "tokens": ["token_id:3", "token_id:4"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"token_id:3": -1.0, "token_id:8": -1.5}, None],
        "text_offset": [0, 10],
    }
    (output,) = text_outputs(sent(text="ab", logprobs=logprobs))
    assert output.logprobs == [{3: Logprob(-1.0), 8: Logprob(-1.5)}, {4: Logprob(-2.0)}]


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"choices":[{"index":0}]}', b"[]"])
def test_what_is_no_answer_is_an_error(body: bytes) -> None:
    for read in (chat_outputs, text_outputs):
        with pytest.raises(ValueError, match=r"."):
            read(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"No.","code":"nope"}}', ("No.", "nope")),
        (b'{"error":{"message":"No.","code":null}}', ("No.", None)),
        (b'{"error":{"message":"No.","code":400}}', ("No.", "400")),
        (b'{"error":"No."}', ('{"error":"No."}', None)),
        (b"Bad Gateway", ("Bad Gateway", None)),
    ],
)
def test_a_servers_own_words_are_found(body: bytes, expected: tuple[str, str | None]) -> None:
    assert refusal(body) == expected
