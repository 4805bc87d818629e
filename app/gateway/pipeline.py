"""The way through, on one screen: what every call passes, in order. Each block gives back what it took."""

from collections.abc import Callable

from app.cluster.fleet import Fleet
from app.gateway.admission import Admission
from app.gateway.answers import Sink
from app.gateway.dispatch import Dispatch
from app.gateway.replays import Replays
from app.generation import Call, Usage
from app.reliability.estimates import Estimates
from app.reliability.ledger import Ledger
from app.reliability.quota import Quota
from app.telemetry.record import Record
from app.wire.limits import limit_headers

OnSettled = Callable[[Call, Usage], None]
"""Hears of what each call used, once; of one that outlives its client too."""


class Pipeline:
    def __init__(
        self,
        replays: Replays,
        fleet: Fleet,
        estimates: Estimates,
        quota: Quota,
        admission: Admission,
        dispatch: Dispatch,
        ledger: Ledger,
        on_settled: OnSettled = lambda call, used: None,
    ) -> None:
        self._replays = replays
        self._fleet = fleet
        self._estimates = estimates
        self._quota = quota
        self._admission = admission
        self._dispatch = dispatch
        self._ledger = ledger
        self._on_settled = on_settled

    async def serve(self, call: Call, out: Sink, record: Record) -> None:
        if call.key is None:
            await self._answer(call, out, record)
        else:
            await self._replays.serve(call, out, record, self._answer)

    async def _answer(self, call: Call, out: Sink, record: Record) -> None:
        """Made here and now."""
        expected = self._estimates.of(call, self._fleet.context_of(call.model))
        story = record.story
        if story is not None:
            story.expected = expected
        async with self._quota.reserve(call, expected) as reservation:
            if story is not None:
                story.limits = reservation.standing
            if reservation.standing:
                out.also(limit_headers(reservation.standing))
            try:
                async with self._admission.admit(call, expected, record) as ticket:
                    await self._dispatch.send(call, ticket, out, record)
                if record.usage is not None and not record.guessed:
                    self._estimates.learn(call, expected, record.usage)
            finally:
                used = record.usage
                reservation.used = 0 if used is None else used.tokens
                if used is not None:
                    self._ledger.add(call.tenant.name, call.model, used)
                    self._on_settled(call, used)
