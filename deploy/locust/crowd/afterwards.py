"""After a run that had the gateway to itself: has all work ended, and is the bill right?

A client sees neither in its answers. That a stream was left must end its work; that a key was sent twice must not be
charged twice. The gateway says both itself, in `/health` and `/admin/usage`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gevent
from locust.env import Environment

from crowd.answer import Answer
from crowd.caller import unfinished
from crowd.line import Line
from crowd.promises import TOO_LATE
from crowd.settings import Settings

WITHIN_S = 5.0
"""Work ends within milliseconds; a machine that is busy elsewhere may take longer to say so."""
EVERY_S = 0.1
HEALTH, USAGE, KEYS = "/health", "/admin/usage", "/v1/idempotency-keys/"


@dataclass(frozen=True)
class Bill:
    requests: int
    tokens: int

    def __sub__(self, other: "Bill") -> "Bill":
        return Bill(self.requests - other.requests, self.tokens - other.tokens)


@dataclass
class Afterwards:
    line: Line
    admin_key: str
    before: Bill | None = None
    """`None`: it could not be read."""

    @classmethod
    def at(cls, environment: Environment) -> "Afterwards":
        settings = Settings.of(environment)
        found = cls(Line(environment.host or "", settings.deadline_s), settings.admin_key)
        found.before = found.bill()
        return found

    def wrong(self, environment: Environment) -> list[str]:
        return [what for what in (self._work(), self._charged(environment)) if what]

    def bill(self) -> Bill | None:
        totals = self._get(USAGE).json().get("totals")
        if not totals:
            return None
        return Bill(totals["requests"], totals["prompt_tokens"] + totals["completion_tokens"])

    def _work(self) -> str:
        left: object = "?"

        def idle() -> bool:
            nonlocal left
            left = self._get(HEALTH).json().get("requests_active")
            return left == 0

        return "" if _soon(idle) else f"{left} calls are still at work {WITHIN_S:g} s after everybody left"

    def _charged(self, environment: Environment) -> str:
        """Answers are charged once, replays not at all; of what was left or cut off, as much as was made."""
        sure, doubtful = _counted(environment)
        now: Bill | None = None

        def right() -> bool:
            nonlocal now
            bill = self.bill()
            now = None if bill is None or self.before is None else bill - self.before
            if now is None:
                return False
            return sure.requests <= now.requests <= sure.requests + doubtful and (
                now.tokens >= sure.tokens if doubtful else now.tokens == sure.tokens
            )

        if _soon(right):
            return ""
        if now is None:
            return "the bill cannot be read: --alone needs an --admin-key where the gateway asks for keys"
        return (
            f"charged for {now.requests} calls and {now.tokens} tokens; answered were {sure.requests} and {sure.tokens}"
            f", and {doubtful} calls more may count"
        )

    def _get(self, path: str) -> Answer:
        return self.line.ask("GET", path, headers=_bearing(self.admin_key))


def give_up_keys(environment: Environment) -> None:
    """Nobody comes back: no grace time is needed."""
    line = Line(environment.host or "", 5.0)
    while unfinished:
        secret, key = unfinished.pop()
        if key:
            line.ask("DELETE", KEYS + key, headers=_bearing(secret))


def _counted(environment: Environment) -> tuple[Bill, int]:
    """What is to be charged for certain, and how many calls more may be."""
    rows = environment.stats.entries.values()

    def count(*kinds: str) -> int:
        return sum(row.num_requests for row in rows if row.method in kinds)

    failed = sum(row.num_failures for row in rows if row.method == "POST")
    late = sum(row.num_requests for row in rows if row.method == "refused" and row.name.startswith(str(TOO_LATE)))
    tokens = sum(row.total_content_length for row in rows if row.method in ("tokens", "prompt"))
    return Bill(count("tokens"), tokens), count("hung up", "cut off") + failed + late


def _soon(true: Callable[[], bool]) -> bool:
    for _ in range(round(WITHIN_S / EVERY_S)):
        if true():
            return True
        gevent.sleep(EVERY_S)
    return False


def _bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
