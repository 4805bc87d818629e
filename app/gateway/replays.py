"""Idempotency keys on the way through: one execution a key, and the same answer for all who ask with it.

A keyed call runs in a task of its own and is recorded; its client is a reader of the recording, like those who come
later with the same key. So a client may vanish and come back, and the answer is made once.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from app.errors import (
    Draining,
    EngineBroken,
    GatewayError,
    KeyInFlight,
    KeyReused,
    NotReplayable,
    StoreDown,
    Unforeseen,
)
from app.gateway.answers import Headers, Sink
from app.gateway.run import Run, Tape, Work
from app.generation import Call, Route
from app.reliability.recording import Reader, Recording
from app.reliability.stores.answers import AnswerStore, Claim, Elsewhere, Kept, Key, OwnerGone
from app.reliability.watch import Watch
from app.settings import Idempotency
from app.telemetry.record import Keyed, Record
from app.tenant import Tenant
from app.tracebacks import forget

log = logging.getLogger("gllm")

KEEP_TRIES = 30
KEEP_PAUSE_S = 1.0
"""How often, and how far apart, a finished answer is offered to a store that is down."""

Slot = tuple[Key, bool]
"""A key, and whether only the rest of its answer is wanted: then nothing may be executed for it."""


class Replays:
    def __init__(
        self,
        store: AnswerStore,
        rules: Idempotency,
        watch: Watch,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._rules = rules
        self._watch = watch
        self._sleep = sleep
        self._runs: dict[Slot, Run] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._closing = False

    def __len__(self) -> int:
        """How many runs there are, read by somebody or not."""
        return len(self._runs)

    @asynccontextmanager
    async def running(self, drain_s: float) -> AsyncIterator[None]:
        """The gateway's life. At its end, what still runs may finish within `drain_s`, and is then ended."""
        async with asyncio.TaskGroup() as self._tasks:
            try:
                yield
            finally:
                self._closing = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(drain_s):
                        while self._runs:
                            await next(iter(self._runs.values())).over.wait()
                for run in self._runs.values():
                    run.stop(Draining(retry_after=1.0))

    async def serve(self, call: Call, out: Sink, record: Record, work: Work) -> None:
        try:
            slot, run = await self._place(call)
            first = run is None
            if run is None:
                run = self._start(slot, call, record, work)
            with run.reading(call) as reader:
                await self._give(run, call, reader, out, record, first=first)
        except (KeyInFlight, KeyReused, NotReplayable, StoreDown) as error:
            record.keyed = _REFUSED[type(error)]
            raise

    def give_up(self, tenant: Tenant, key: str) -> None:
        """No grace time for what runs here with this key, whatever the endpoint."""
        scopes = {Key.scope_of(tenant, route, key) for route in Route}
        for (each, _), run in self._runs.items():
            if each.scope in scopes:
                run.give_up()

    async def _place(self, call: Call) -> tuple[Slot, Run | None]:
        """Where the call belongs, and the run that is there."""
        key = Key.of(call)
        while True:
            slot = (key, call.seen > 0 and (key, False) not in self._runs)
            run = self._runs.get(slot)
            if run is None:
                return slot, None
            if run.verdict is not None:
                await run.over.wait()  # it is being ended, and takes nobody in any more
            elif self._rules.attach or run.is_replay or run.recording.ended:
                return slot, run
            elif run.executes:
                raise KeyInFlight(retry_after=1.0)
            else:
                await run.settled.wait()

    def _start(self, slot: Slot, call: Call, record: Record, work: Work) -> Run:
        if self._closing or self._tasks is None:
            raise Draining(retry_after=1.0)
        rules = self._rules
        run = Run(call, record, Recording(rules.max_bytes, rules.max_events), self._watch, rules.grace_s)
        self._runs[slot] = run
        self._watch.add(run)
        run.task = self._tasks.create_task(self._live(slot, run, work))
        return run

    async def _give(self, run: Run, call: Call, reader: Reader, out: Sink, record: Record, *, first: bool) -> None:
        """From the recording to one client, as it grows."""
        try:
            try:
                block = await (reader.next() if run.call.stream else reader.whole())
            finally:
                out.also(_head(run, first=first))
                _tell(run, call, record, first=first)
            while block is not None:
                await out.write(block)
                block = await reader.next()
            if not out.committed:
                await out.write(b"")  # the client had it all, and asked for what comes after
            await out.end()
        finally:
            _tell(run, call, record, first=first)

    # --- the run, in its own task ---------------------------------------------------------------------------------

    async def _live(self, slot: Slot, run: Run, work: Work) -> None:
        error: GatewayError | None = None
        try:
            await self._answer(slot, run, work)
        except GatewayError as failure:
            error = failure
        except asyncio.CancelledError:
            if run.verdict is None:
                error = Draining(retry_after=1.0)
                raise
            error = run.verdict
        except Exception:
            log.exception("the run of request %s failed unforeseen", run.call.id)
            error = Unforeseen()
        finally:
            self._watch.discard(run)
            del self._runs[slot]
            run.settled.set()
            run.over.set()
            if not run.recording.ended:
                run.recording.end(error)
            run.claim = None  # which holds the run, as that holds it
            if error is not None:
                forget(error)

    async def _answer(self, slot: Slot, run: Run, work: Work) -> None:
        key, only_the_rest = slot
        while True:
            run.executes = None
            ask = self._store.find if only_the_rest else self._store.claim
            match await ask(key):
                case None:
                    raise NotReplayable("There is nothing left of this stream to go on with.", code="nothing_to_resume")
                case Kept() as answer:
                    return _replay(run, answer)
                case Elsewhere() as elsewhere:
                    with suppress(OwnerGone):
                        return await self._follow(run, elsewhere)
                case claim:
                    return await self._execute(run, claim, work)

    async def _execute(self, run: Run, claim: Claim, work: Work) -> None:
        try:
            run.settle(claim)
            await work(run.call, Tape(run), run.record)
        except BaseException as error:
            await claim.release(_told(run, error))
            raise
        run.worked()
        await self._keep(run, claim)

    async def _keep(self, run: Run, claim: Claim) -> None:
        """Kept first, ended then: who has read it to its end can have it again. A store that is down holds up no
        client; it is asked again while the key is still ours.
        """
        try:
            for _ in range(KEEP_TRIES):
                with suppress(StoreDown):
                    await claim.finish(run.recording)
                    return
                run.recording.end()
                if self._closing:
                    break
                await self._sleep(KEEP_PAUSE_S)
        except asyncio.CancelledError:
            await claim.release(StoreDown())
            raise
        finally:
            run.recording.end()
        log.error("the answer to request %s could not be kept", run.call.id)
        await claim.release(StoreDown())

    async def _follow(self, run: Run, elsewhere: Elsewhere) -> None:
        """What another gateway answers. Raises `OwnerGone` if it died before it had said anything."""
        recording = run.recording
        run.follows = True
        run.settle(None)
        if not self._rules.attach:
            raise KeyInFlight(retry_after=1.0)
        while not recording.ended:
            try:
                batch = await elsewhere.next()
            except OwnerGone:
                if len(recording):
                    raise EngineBroken("The gateway that answered this is gone.") from None
                raise
            if batch.start != len(recording):
                raise NotReplayable
            recording.replica, recording.attempts, recording.request = batch.replica, batch.attempts, batch.request
            recording.add(batch.frames)
            await recording.room()
            if batch.failure is not None:
                raise batch.failure.error
            if batch.ended:
                recording.end()


def _replay(run: Run, answer: Kept) -> None:
    run.settle(None)
    if answer.frames is None:
        raise NotReplayable
    recording = run.recording
    recording.replica, recording.attempts, recording.request = answer.replica, answer.attempts, answer.request
    recording.add(answer.frames)
    recording.end()


def _told(run: Run, error: BaseException) -> GatewayError:
    """What those get who follow from elsewhere."""
    if run.verdict is not None:
        return run.verdict
    return error if isinstance(error, GatewayError) else Unforeseen()


def _head(run: Run, *, first: bool) -> Headers:
    """What the head of an answer says beside the usual."""
    said: Headers = list(run.headers) if first else []
    if run.is_replay or (run.executes and not first):
        said.append((b"idempotent-replayed", b"true"))
    if run.executes and not run.call.stream and not run.recording.kept:
        said.append((b"x-gllm-replayable", b"false"))
    return said


def _tell(run: Run, call: Call, record: Record, *, first: bool) -> None:
    """What the request's own record takes over. What was used is told once, by the request that used it."""
    record.replica, record.attempts = run.recording.replica, run.recording.attempts
    record.replayed = run.is_replay or not first
    record.keyed = _how(run, call, first=first)
    record.answered_by = run.recording.request if record.replayed else ""
    if first and run.executes:
        record.replica, record.attempts = run.record.replica, run.record.attempts
        record.taken_over = run.record.taken_over
        record.routed_by = run.record.routed_by
        record.queued_s, record.events = run.record.queued_s, run.record.events
        record.allowed, record.admitted = run.record.allowed, run.record.admitted
        record.waits, record.tries = run.record.waits, run.record.tries
        record.usage, record.guessed = run.record.usage, run.record.guessed


_REFUSED = {
    KeyInFlight: Keyed.IN_FLIGHT,
    KeyReused: Keyed.MISMATCH,
    NotReplayable: Keyed.NOT_REPLAYABLE,
    StoreDown: Keyed.STORE_DOWN,
}


def _how(run: Run, call: Call, *, first: bool) -> Keyed | None:
    """`None` while the store is asked."""
    if run.executes is None:
        return None
    if call.seen:
        return Keyed.RESUMED
    if run.executes:
        return Keyed.FIRST if first else Keyed.ATTACHED
    return Keyed.ATTACHED if run.follows else Keyed.REPLAYED
