"""How a change of models goes: what is known of each worker, and an account of it for whoever follows."""

import asyncio
from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    RUNNING = "running"
    RETURNING = "returning"
    """It has failed, and those that had changed are being given back what they served."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (Outcome.DONE, Outcome.FAILED, Outcome.CANCELLED)


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker has come so far."""

    worker: str
    step: str
    """As a worker's progress says it; and `waiting`, `skipped`, `ready`, `failed`, `returned`, `left`."""
    part: float | None = None
    said: str = ""


class Account(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All of it, at one moment."""

    id: str
    model: str
    names: tuple[str, ...]
    outcome: Outcome
    rounds: tuple[tuple[str, ...], ...]
    seconds: float
    workers: tuple[Step, ...]
    worker: str = ""
    """The one that failed."""
    reason: str = ""
    tail: tuple[str, ...] = ()
    """Its engine's last lines."""


class Feed:
    """The latest of each worker. Whoever follows slowly misses what has been overtaken, and never the last."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self._numbers: dict[str, int] = {}
        self._count = 0
        self.closed = False
        self._news = asyncio.Event()

    def tell(self, step: Step) -> None:
        if self.steps.get(step.worker) != step:
            self._count += 1
            self.steps[step.worker] = step
            self._numbers[step.worker] = self._count
            self._wake()

    def close(self) -> None:
        self.closed = True
        self._wake()

    async def ended(self) -> None:
        while not self.closed:
            await self._news.wait()

    async def after(self, seen: int) -> tuple[int, list[Step]]:
        """How many changes there are now, and what came of those after `seen`, once there are some. None at the end."""
        while True:
            fresh = sorted((number, name) for name, number in self._numbers.items() if number > seen)
            if fresh or self.closed:
                return self._count, [self.steps[name] for _, name in fresh]
            await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
