"""One execution of a keyed call, apart from the clients that read it."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import msgspec

from app.errors import ClientGone, DeadlinePassed, GatewayError, StoreDown
from app.gateway.answers import Headers, Sink
from app.generation import Call
from app.reliability.recording import Reader, Recording
from app.reliability.stores.answers import Claim
from app.reliability.watch import Watch
from app.telemetry.record import Record
from app.wire.sse import numbered

Work = Callable[[Call, Sink, Record], Awaitable[None]]
"""The rest of the way through."""


BACKSTOP_S = 1.0
"""Admission and engines keep the deadline themselves, and say so; a run that is still there then is cut."""


class Run:
    """Lives in a task of its own. A `Wait`: it ends when its time is over, or nobody has read it for the grace time."""

    def __init__(self, call: Call, record: Record, recording: Recording, watch: Watch, grace_s: float) -> None:
        self.call = call
        self.recording = recording
        self.record = msgspec.structs.replace(record)
        """The run's own: it may outlive the request that it began with."""
        record.made = self.record
        recording.request = call.id
        self.headers: Headers = []
        self.executes: bool | None = None
        """Whether the answer is made here; `None` while the store is asked."""
        self.follows = False
        """Another gateway makes it, and we read along."""
        self.settled = asyncio.Event()
        self.over = asyncio.Event()
        self.verdict: GatewayError | None = None
        """Why it is being ended from outside."""
        self.task: asyncio.Task[None] | None = None
        self.claim: Claim | None = None
        self.due = math.inf
        self._watch = watch
        self._grace_if_ours_s = grace_s
        self._grace_s = grace_s
        self._expires_at = math.inf
        self._alone_since = math.inf

    @property
    def is_replay(self) -> bool:
        return self.executes is False

    @contextmanager
    def reading(self, call: Call) -> Iterator[Reader]:
        """One client's place at it. The last who leaves starts the grace time."""
        reader = self.recording.reader(call.seen, call.expires_at, self._watch)
        self._alone_since = math.inf
        self._aim()
        try:
            with reader:
                yield reader
        finally:
            if not self.recording.readers:
                self._alone_since = self._watch.clock()
                self._aim()

    def settle(self, claim: Claim | None) -> None:
        """The store has answered: with a claim it is ours to do. Raises if it is not wanted any more."""
        self.claim = claim
        self.executes = claim is not None
        self.settled.set()
        if claim is None:
            self._grace_s = 0.0  # nothing is lost if nobody reads
        else:
            claim.begin(self.recording, self._lost)
            self._grace_s = self._grace_if_ours_s
            self._expires_at = self.call.expires_at + BACKSTOP_S
        self._aim()
        if self.verdict is not None:
            raise self.verdict

    def give_up(self) -> None:
        """The client says that it will not come back: who reads now may go on, and the last to leave ends the run."""
        self._grace_if_ours_s = 0.0
        if self._grace_s < math.inf:
            self._grace_s = 0.0
        self._aim()

    def worked(self) -> None:
        """What remains is to keep the answer, and that is limited in itself."""
        self.recording.complete = True
        self._expires_at = self._grace_s = math.inf
        self._aim()

    def stop(self, error: GatewayError) -> None:
        """While the store is asked, its answer is awaited: a claim that nobody knows of could not be given back."""
        if self.verdict is None:
            self.verdict = error
            if self.executes is not None and self.task is not None:
                self.task.cancel()

    def expire(self, now: float) -> None:
        if now < self._expires_at and self.claim is not None and self.claim.followed:
            self._alone_since = now  # read elsewhere
            self._aim()
            return
        self.due = math.inf
        self.stop(DeadlinePassed() if now >= self._expires_at else ClientGone())

    def _aim(self) -> None:
        self.due = min(self._expires_at, self._alone_since + self._grace_s)

    def _lost(self) -> None:
        text = "While the store could not be reached, another gateway took this key over."
        self.stop(StoreDown(text, retry_after=1.0))


class Tape:
    """Where a run writes to: the client's side of the connection, played by a recording."""

    def __init__(self, run: Run) -> None:
        self.committed = False
        self._run = run

    def also(self, headers: Headers) -> None:
        self._run.headers += headers

    async def write(self, block: bytes) -> None:
        run, recording = self._run, self._run.recording
        if not self.committed:
            self.committed = True
            recording.replica, recording.attempts = run.record.replica, run.record.attempts
        if run.call.stream:
            recording.add(numbered(block, len(recording)))
            await recording.room()
        else:
            recording.add([block])

    def offer(self, block: bytes, *, last: bool) -> bool:
        return False

    async def end(self) -> None:
        """Readers are told when the answer is kept."""

    async def fail(self, error: GatewayError) -> None:
        """Readers are told when the key is free."""
