"""Lines for people: colours where there are colours, and nothing but the words elsewhere."""

import io
import re

import pytest

from app.errors import Outcome
from app.telemetry.record import Record
from app.telemetry.words import Words, coloured, lasting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "env", "expected"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colours_are_for_terminals_whose_owner_wants_them(
    stream: io.StringIO, env: dict[str, str], expected: bool
) -> None:
    assert coloured(stream, env) is expected


@pytest.mark.parametrize("outcome", Outcome)
def test_a_colour_changes_no_word(outcome: Outcome) -> None:
    record = Record("req-1", "/v1/chat/completions", "POST", 1.0, ended=2.0, status=200, outcome=outcome)
    plain, bright = (Words(coloured=each).request(record) for each in (False, True))
    assert plain.isprintable()
    assert re.sub(r"\x1b\[\d+m", "", bright)[8:] == plain[8:]
    assert bright.count("\x1b[0m") == 3
    colour = {Outcome.OK: 32}.get(outcome, 33 if outcome in ("client_error", "rate_limited", "client_gone") else 31)
    assert f"\x1b[{colour}m200 {outcome}" in bright


def test_all_outcomes_fit_into_their_column() -> None:
    assert max(map(len, Outcome)) <= 15


def test_times_are_told_as_precisely_as_one_reads_them() -> None:
    assert [lasting(each) for each in (0.0, 0.00123, 0.0499, 0.999, 1.5, 99.999, 600.0)] == [
        "0.0 ms",
        "1.2 ms",
        "50 ms",
        "999 ms",
        "1.50 s",
        "100.00 s",
        "600 s",
    ]
