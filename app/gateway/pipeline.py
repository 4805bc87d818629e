"""The way through, on one screen: what every call passes, in order. Each block gives back what it took."""

from app.gateway.admission import Admission
from app.gateway.answers import Sink
from app.gateway.dispatch import Dispatch
from app.generation import Call, Expected
from app.telemetry.record import Record


class Pipeline:
    def __init__(self, admission: Admission, dispatch: Dispatch) -> None:
        self._admission = admission
        self._dispatch = dispatch

    async def serve(self, call: Call, out: Sink, record: Record) -> None:
        expected = Expected(
            call.prompt_bytes // 4, call.max_tokens or 256, call.prompt_bytes // 4 + (call.max_tokens or 256)
        )
        async with self._admission.admit(call, expected, record) as ticket:
            await self._dispatch.send(call, ticket, out, record)
