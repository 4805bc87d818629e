"""The way from a gateway to Redis and back, in whatever trouble its faults bring at the time.

It ends below the gateway's own pool: a wire is what redis-py calls a connection, as far as the pool uses one. What is
sent arrives after a while and is done then, at once; the answer takes a while too. The troubles lie in between, and
what the gateway cannot know, whether it was done, is decided by chance and written down.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as Broken

from app.reliability.stores.redis import PREFIX
from app.reliability.stores.redis_pool import Command
from tests.simulation.memory import Memory
from tests.simulation.world import StoreFault, StoreTrouble, World

TRIP_S = 0.0002
"""One way."""

REFUSALS = (
    "READONLY You can't write against a read only replica.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "LOADING Redis is loading the dataset in memory",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
)


@dataclass
class Exchange:
    """All that a gateway sent at once, and what became of it."""

    gateway: int
    commands: Sequence[Command]
    began: float
    troubles: frozenset[StoreTrouble]
    done: float | None = None
    """Redis has done it, or a part of it."""
    ended: float | None = None
    """Answered, or given up."""
    answered: bool = False

    @property
    def done_late(self) -> bool:
        return self.done is not None and self.ended is not None and self.done > self.ended

    def __str__(self) -> str:
        troubles = ", ".join(sorted(self.troubles)) or "well"
        done = "never done" if self.done is None else f"done at {self.done:.4f}"
        return f"{asked(self.commands)}: {troubles}, {done}, {'answered' if self.answered else 'not answered'}"


def asked(commands: Sequence[Command]) -> str:
    """The first word, and the first key."""
    word, *given = commands[0]
    key = next((part for part in given if isinstance(part, str) and part.startswith(PREFIX)), "")
    return f"{word!s} {key}"


class Link:
    def __init__(self, gateway: int, world: World, memory: Memory, exchanges: list[Exchange]) -> None:
        self.memory = memory
        self.loop = asyncio.get_running_loop()
        self.limit_s: float = world.settings["REDIS_TIMEOUT"]
        self._gateway = gateway
        self._seed = world.seed
        self._exchanges = exchanges
        self._faults: list[StoreFault] = []
        self._wires: list[Wire] = []
        self._asked: Counter[str] = Counter()

    def begin(self, fault: StoreFault) -> None:
        self._faults.append(fault)
        if fault.trouble is StoreTrouble.GONE:
            wires, self._wires = self._wires, []
            for wire in wires:
                wire.breaks()

    def end(self, fault: StoreFault) -> None:
        self._faults.remove(fault)

    def wire(self) -> "Wire":
        wire = Wire(self)
        self._wires.append(wire)
        return wire

    def closed(self, wire: "Wire") -> None:
        if wire in self._wires:
            self._wires.remove(wire)

    def exchange(self, commands: Sequence[Command]) -> tuple[Exchange, random.Random]:
        """What is drawn depends on what is asked for, and for which time, not on when."""
        what = asked(commands)
        self._asked[what] += 1
        rng = random.Random(f"{self._seed} {self._gateway} asks {what} {self._asked[what]}")
        troubles = frozenset(fault.trouble for fault in self._faults if rng.random() < fault.share)
        exchange = Exchange(self._gateway, commands, self.loop.time(), troubles)
        self._exchanges.append(exchange)
        return exchange, rng

    @property
    def is_cut(self) -> bool:
        return any(fault.trouble is StoreTrouble.GONE and fault.share == 1 for fault in self._faults)


@dataclass
class _Reader:
    """Where the pool looks whether the other side has hung up."""

    broken: bool = False

    def at_eof(self) -> bool:
        return self.broken


@dataclass
class Wire:
    link: Link
    is_connected: bool = False
    _reader: _Reader = field(default_factory=_Reader)
    _exchange: Exchange | None = None
    _coming: "asyncio.Future[list[Any]] | None" = None
    _answers: list[Any] = field(default_factory=list)

    def pack_commands(self, commands: Sequence[Command]) -> Sequence[Command]:
        self._exchange, self._rng = self.link.exchange(commands)
        return commands

    async def connect(self) -> None:
        troubles = self._under_way.troubles
        if StoreTrouble.GONE in troubles:
            raise Broken("Connection refused.")
        if StoreTrouble.LOST in troubles:
            await asyncio.Event().wait()
        await asyncio.sleep(2 * TRIP_S)
        if self._reader.broken:
            raise Broken("Connection refused.")
        self.is_connected = True

    async def send_packed_command(self, commands: Sequence[Command], check_health: bool) -> None:
        exchange, loop = self._under_way, self.link.loop
        self._coming = loop.create_future()
        if StoreTrouble.GONE in exchange.troubles:
            self.breaks()
        elif StoreTrouble.LOST not in exchange.troubles:
            late = self._rng.choice([1.01, 2.0, 20.0]) if StoreTrouble.LATE in exchange.troubles else 0.0
            loop.call_later(TRIP_S + late * self.link.limit_s, self._arrive, exchange, self._coming)

    async def read_response(self) -> Any:
        if self._coming is not None:
            self._answers, self._coming = await self._coming, None
        answer = self._answers.pop(0)
        if not self._answers:
            self._under_way.ended, self._under_way.answered = self.link.loop.time(), True
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def disconnect(self, nowait: bool) -> None:
        if self._exchange is not None and self._exchange.ended is None:
            self._exchange.ended = self.link.loop.time()
        if self._coming is not None:
            self._coming.cancel()
        self.is_connected = False
        self.link.closed(self)

    def breaks(self) -> None:
        self._reader.broken = True
        if self._coming is not None and not self._coming.done():
            self._coming.set_exception(Broken("Connection reset by peer."))

    def _arrive(self, exchange: Exchange, coming: "asyncio.Future[list[Any]]") -> None:
        """Also when the gateway has given up meanwhile: what was sent is on its way."""
        link, troubles = self.link, exchange.troubles
        if link.is_cut:
            return
        if StoreTrouble.FORGETFUL in troubles:
            link.memory.forget_scripts()
        commands = exchange.commands
        if StoreTrouble.CUT in troubles:
            commands = commands[: self._rng.randrange(len(commands) + 1)]
        if StoreTrouble.REFUSING in troubles:
            answers = [_error(self._rng.choice(REFUSALS)) for _ in commands]
        else:
            answers = link.memory.do(commands, link.loop.time())
            exchange.done = link.loop.time() if commands else None
        if StoreTrouble.CUT in troubles:
            if not coming.done():
                self.breaks()
        elif StoreTrouble.UNANSWERED not in troubles:
            slow = self._rng.choice([0.3, 0.9, 2.0]) if StoreTrouble.SLOW in troubles else 0.0
            link.loop.call_later(TRIP_S + slow * link.limit_s, _deliver, coming, answers)

    @property
    def _under_way(self) -> Exchange:
        assert self._exchange is not None, "nothing was packed"
        return self._exchange


def _error(text: str) -> Exception:
    """As redis-py reads it: some have classes of their own."""
    error: Exception = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
    return error


def _deliver(coming: "asyncio.Future[list[Any]]", answers: list[Any]) -> None:
    if not coming.done():
        coming.set_result(answers)
