"""What a gateway has promised, and whether an answer keeps it.

Refusing is no failure: a full gateway must, at once, honestly, and with the time after which to come again.
"""

from dataclasses import dataclass
from enum import StrEnum

from crowd.answer import Answer


class How(StrEnum):
    ANSWERED = "answered"
    REFUSED = "refused"
    LEFT = "left"
    """By us."""
    FAILED = "failed"
    """Honestly: an error, or a connection that is gone."""
    BROKEN = "broken promise"


@dataclass(frozen=True)
class Ending:
    how: How
    why: str = ""
    retry_after_s: float = 0.0


TRY_LATER = (429, 503)
TOO_LATE, TIME_OVER = 504, "deadline_exceeded"
"""The time was over that the caller had given it, which had begun to answer in good faith."""


def ending(answer: Answer) -> Ending:
    if answer.left:
        return Ending(How.LEFT)
    if answer.broken and answer.status == 0:
        return Ending(How.FAILED, f"no answer: {answer.broken}")
    if answer.status == 200:
        return _of_stream(answer) if answer.stream is not None else _of_whole(answer)
    return _of_error(answer)


def _of_stream(answer: Answer) -> Ending:
    stream = answer.stream
    assert stream is not None
    if stream.after:
        return _broken(f"after its end a stream said {stream.after}")
    if stream.error == TIME_OVER:
        return Ending(How.REFUSED, f"{TOO_LATE} {TIME_OVER}, in a stream")
    if stream.error:
        return Ending(How.FAILED, f"stream ended by {stream.error}")
    if not stream.done:
        return _broken(f"a stream ended without [DONE] or an error{_because(answer)}")
    if stream.usage is None:
        return _broken("a stream without the usage that was asked for")
    return Ending(How.ANSWERED)


def _of_whole(answer: Answer) -> Ending:
    if answer.broken:
        return _broken(f"half an answer{_because(answer)}")
    said = answer.json()
    if not said.get("choices") or not said.get("usage"):
        return _broken("200, and neither choices nor usage")
    return Ending(How.ANSWERED)


def _of_error(answer: Answer) -> Ending:
    what = f"{answer.status} {answer.code}"
    if not answer.code:
        return _broken(f"{answer.status} without an error that says why{_because(answer)}")
    if "x-request-id" not in answer.headers:
        return _broken(f"{what} without x-request-id")
    if answer.status == TOO_LATE:
        return Ending(How.REFUSED, what)
    if answer.status not in TRY_LATER or answer.headers.get("x-should-retry") == "false":
        return Ending(How.FAILED, what)
    said = answer.headers.get("retry-after", "")
    if not said.isdecimal():
        return _broken(f"{what} without Retry-After in seconds")
    return Ending(How.REFUSED, what, float(said))


def of_twins(one: Answer, other: Answer) -> str:
    """What is wrong with two answers to one key, both of which are whole; empty if nothing is."""
    if one.replayed == other.replayed:
        return f"two calls with one key, and {'none' if one.replayed else 'both'} of them executed"
    if not (one.replayable and other.replayable):
        return ""
    return "" if one.body == other.body else "two answers to one key are not the same bytes"


def _broken(why: str) -> Ending:
    return Ending(How.BROKEN, why)


def _because(answer: Answer) -> str:
    return f" ({answer.broken})" if answer.broken else ""
