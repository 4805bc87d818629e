"""The way through, on one screen: what every call passes, in order. Each block gives back what it took."""

from app.gateway.admission import Admission
from app.gateway.answers import Sink
from app.gateway.dispatch import Dispatch
from app.generation import Call
from app.telemetry.record import Record


class Pipeline:
    def __init__(self, admission: Admission, dispatch: Dispatch) -> None:
        self._admission = admission
        self._dispatch = dispatch

    async def serve(self, call: Call, out: Sink, record: Record) -> None:
        with self._admission:
            await self._dispatch.send(call, out, record)
