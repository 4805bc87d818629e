"""The way through, on one screen: what every call passes, in order. Each block gives back what it took."""

from app.gateway.admission import Admission
from app.gateway.answers import Sink
from app.gateway.dispatch import Dispatch
from app.generation import Call
from app.reliability.ledger import Ledger
from app.telemetry.record import Record


class Pipeline:
    def __init__(self, admission: Admission, dispatch: Dispatch, ledger: Ledger) -> None:
        self._admission = admission
        self._dispatch = dispatch
        self._ledger = ledger

    async def serve(self, call: Call, out: Sink, record: Record) -> None:
        with self._admission:
            try:
                await self._dispatch.send(call, out, record)
            finally:
                if record.usage is not None:
                    self._ledger.add(call.tenant.name, call.model, record.usage)
