"""Sends a call to a replica, and to another one if the first fails before the commit point."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from app.clock import Clock
from app.cluster.fleet import Fleet
from app.cluster.replica import Replica
from app.errors import EngineError, EngineUnreachable, NoReplica
from app.gateway.answers import Sink
from app.generation import Call
from app.reliability.retry import Retry
from app.telemetry.base import EngineErrorSeen, Telemetry
from app.telemetry.record import Record
from app.wire.answers import stream_reader, usage_of


class Dispatch:
    def __init__(
        self,
        fleet: Fleet,
        retry: Retry,
        telemetry: Telemetry,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._fleet = fleet
        self._retry = retry
        self._telemetry = telemetry
        self._clock = clock
        self._sleep = sleep

    async def send(self, call: Call, out: Sink, record: Record) -> None:
        failed: dict[str, EngineError] = {}
        for attempt in itertools.count(1):
            with self._lease(call, failed) as replica:
                record.replica, record.attempts = replica.name, attempt
                try:
                    await self._relay(replica, call, out, record)
                    return
                except EngineError as error:
                    pause = None
                    if not out.committed:
                        pause = self._retry.pause_after(attempt, error, call.expires_at - self._clock())
                    self._tell(replica, call, error, retried=pause is not None)
                    if pause is None:
                        raise
                    failed[replica.name] = error
            await self._sleep(pause)

    def _lease(self, call: Call, failed: dict[str, EngineError]) -> Replica:
        """A replica that has not failed this call yet. Where none is left, the last failure says more than 'none'."""
        try:
            return self._fleet.lease(call, avoiding=failed)
        except NoReplica:
            if failed:
                raise list(failed.values())[-1] from None
            raise

    async def _relay(self, replica: Replica, call: Call, out: Sink, record: Record) -> None:
        async with replica.engine.open(call) as blocks:
            if not call.stream:
                async for body in blocks:
                    record.usage = usage_of(body)
                    await out.write(body)
                return
            reader = stream_reader(call.route, shows_usage=call.shows_usage)
            try:
                async for block in blocks:
                    if shown := reader.read(block):
                        await out.write(shown)
                reader.close()
            finally:
                record.usage = reader.usage
        await out.end()

    def _tell(self, replica: Replica, call: Call, error: EngineError, *, retried: bool) -> None:
        if isinstance(error, EngineUnreachable):
            self._fleet.failed(replica, type(error).__name__)
        self._telemetry.note(EngineErrorSeen(call.id, replica.name, type(error).__name__, error.detail, retried))
