"""What is written down, as rows of Locust's statistics: `Type` says what, `Name` of whom.

Answers and failures are requests to Locust (`events.request`). What is measured beside them, such as the time to the
first token, is told by an event of our own, and gets rows that do not count as requests: "Aggregated" stays true.
"""

from typing import Any

from locust import events
from locust.env import Environment
from locust.event import EventHook

from crowd.answer import Answer
from crowd.promises import Ending, How, ending

measured = EventHook()
"""`fire(environment=, what=, name=, value=, size=)`; a value is in ms where it is a time."""


class BrokenPromise(Exception):
    pass


class Failed(Exception):
    pass


def into_the_statistics(environment: Environment, what: str, name: str, value: float, size: int) -> None:
    environment.stats.get(name, what).log(value, size)  # type: ignore[arg-type]  # it takes any number


measured.add_listener(into_the_statistics)


class Figures:
    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def note(self, what: str, name: str, value: float = 0.0, size: int = 0) -> None:
        measured.fire(environment=self._environment, what=what, name=name, value=value, size=size)

    def ended(self, kind: str, answer: Answer, tenant: str) -> Ending:
        """Every call comes here once, unless the run ended before it did."""
        end = ending(answer)
        took_ms = answer.took_s * 1e3
        match end.how:
            case How.ANSWERED if answer.replayed:
                self.note("replayed", kind, took_ms, len(answer.body))
            case How.ANSWERED:
                self._request(kind, took_ms, len(answer.body))
                self._tokens(kind, answer)
                if tenant:
                    self.note("tenant", tenant, took_ms)
            case How.REFUSED:
                self.note("refused", end.why, took_ms)
            case How.LEFT:
                self.note("hung up", kind, took_ms)
            case How.FAILED:
                self._request(kind, took_ms, 0, Failed(end.why))
            case How.BROKEN:
                self.broken(kind, end.why, took_ms)
        if answer.stream is not None and not answer.replayed:
            self._stream(kind, answer)
        return end

    def broken(self, kind: str, why: str, took_ms: float = 0.0) -> None:
        self._request(kind, took_ms, 0, BrokenPromise(why))

    def _request(self, kind: str, took_ms: float, size: int, exception: Exception | None = None) -> None:
        said: dict[str, Any] = {"response_time": took_ms, "response_length": size, "exception": exception}
        events.request.fire(request_type="POST", name=kind, context={}, **said)

    def _stream(self, kind: str, answer: Answer) -> None:
        stream = answer.stream
        if stream is None or stream.first_at is None:
            return
        self.note("ttft", kind, (stream.first_at - answer.due) * 1e3)
        for gap_s in stream.gaps_s:
            self.note("gap", kind, gap_s * 1e3)

    def _tokens(self, kind: str, answer: Answer) -> None:
        usage = answer.usage or {}
        self.note("tokens", kind, 0, int(usage.get("completion_tokens", 0)))
        self.note("prompt", kind, 0, int(usage.get("prompt_tokens", 0)))
        per_token_s = answer.stream.per_token_s if answer.stream else None
        if per_token_s:
            self.note("tpot", kind, per_token_s * 1e3)
            self.note("tokens/s", kind, 1 / per_token_s)
