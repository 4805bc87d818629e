"""The way through, on one screen: what every call passes, in order. Each block gives back what it took."""

from app.gateway.admission import Admission
from app.gateway.answers import Sink
from app.gateway.dispatch import Dispatch
from app.gateway.replays import Replays
from app.generation import Call
from app.telemetry.record import Record


class Pipeline:
    def __init__(self, replays: Replays, admission: Admission, dispatch: Dispatch) -> None:
        self._replays = replays
        self._admission = admission
        self._dispatch = dispatch

    async def serve(self, call: Call, out: Sink, record: Record) -> None:
        if call.key is None:
            await self._work(call, out, record)
        else:
            await self._replays.serve(call, out, record, self._work)

    async def _work(self, call: Call, out: Sink, record: Record) -> None:
        """What an answer takes that is made here and now."""
        with self._admission:
            await self._dispatch.send(call, out, record)
