"""What callers do. Each does it once, from the moment at which it was due, and says how long it was asked to wait."""

from collections.abc import Callable
from time import perf_counter

import gevent
from greenlet import GreenletExit

from crowd.answer import Answer
from crowd.caller import Caller, together
from crowd.promises import Ending, How, of_twins
from crowd.sse import Stream

Kind = Callable[[Caller, float], float]


def chat(caller: Caller, due: float) -> float:
    return _ended(caller, "chat", caller.ask("chat", caller.question(stream=False), due)).retry_after_s


def stream(caller: Caller, due: float) -> float:
    return _ended(caller, "stream", caller.ask("stream", caller.question(stream=True), due)).retry_after_s


def retry(caller: Caller, due: float) -> float:
    """The same twice with one key: one after the other, or while the first is still being answered."""
    body, key = caller.question(stream=caller.dice.random() < 0.6), caller.new_key()

    def ask(due: float) -> Answer:
        return caller.ask("retry", body, due, idempotency_key=key)

    if caller.dice.random() < 0.5:
        first = ask(due)
        end = _ended(caller, "retry", first)
        if end.how is not How.ANSWERED:
            return end.retry_after_s
        second = ask(perf_counter())
    else:
        calls = (gevent.spawn(ask, due), gevent.spawn(ask, due))
        try:
            with together(*calls):
                first, second = (each.get() for each in calls)
        except GreenletExit:
            for each in calls:  # one may have been answered while the other was not
                if isinstance(each.value, Answer):
                    _ended(caller, "retry", each.value)
            raise
        end = _ended(caller, "retry", first)
    other = _ended(caller, "retry", second)
    if end.how is other.how is How.ANSWERED and (wrong := of_twins(first, second)):
        caller.figures.broken("retry", wrong)
    return max(end.retry_after_s, other.retry_after_s)


def hangup(caller: Caller, due: float) -> float:
    """Leaves a long answer after a few words, and with nothing said."""
    enough = caller.dice.randint(1, 12)

    def leaves(heard: Stream) -> bool:
        return heard.pieces >= enough

    body = caller.question(stream=True, times=4)
    return _ended(caller, "hangup", caller.ask("hangup", body, due, leaves=leaves)).retry_after_s


def burst(caller: Caller, due: float) -> float:
    """Everything at once: a page that opens, a batch of a colleague."""

    def ask() -> float:
        body = caller.question(stream=caller.dice.random() < 0.5)
        return _ended(caller, "burst", caller.ask("burst", body, due)).retry_after_s

    calls = [gevent.spawn(ask) for _ in range(caller.settings.burst)]
    with together(*calls):
        waits: list[float] = [each.get() for each in calls]
    return max(waits)


KINDS: dict[str, Kind] = {"chat": chat, "stream": stream, "retry": retry, "hangup": hangup, "burst": burst}


def _ended(caller: Caller, kind: str, answer: Answer) -> Ending:
    return caller.figures.ended(kind, answer, caller.key.tenant)
