"""What operators ask about single calls: which there were lately, and why one went as it did (`gllm explain`)."""

import heapq
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.errors import InvalidRequest, Outcome, UnknownPath
from app.gateway.admission import Admission
from app.gateway.described import described
from app.gateway.endpoints import READING
from app.telemetry.explaining import Explanations
from app.telemetry.explanation import Explanation, Requests
from app.telemetry.journal import Journal
from app.telemetry.record import Record

REQUESTS = "/admin/requests"
ONE = REQUESTS + "/{request_id}"
PARAMETERS = ("outcome", "tenant", "model", "limit")
SHOWN, MOST_SHOWN = 50, 1_000

_GIVEN = re.compile(r"req-([0-9a-f]{4})[0-9a-f]{20}")


@dataclass(frozen=True)
class JournalPages:
    journal: Journal | None
    admission: Admission
    explanations: Explanations

    @property
    def paths(self) -> frozenset[str]:
        return frozenset((REQUESTS,))

    def router(self) -> APIRouter:
        router = APIRouter()
        table: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
            (REQUESTS, self.requests, described("The last calls, newest first", Requests)),
            (ONE, self.request, described("One call explained", Explanation)),
        ]
        for path, answer, said in table:
            router.add_api_route(path, answer, methods=READING, include_in_schema=False)
            router.add_api_route(path, answer, methods=["GET"], **said)
        return router

    async def requests(
        self,
        request: Request,
        outcome: Outcome | None = None,
        tenant: str | None = None,
        model: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = SHOWN,
    ) -> Response:
        """`outcome` leaves out those that still run."""
        for name in request.query_params:
            if name not in PARAMETERS:  # a misspelt filter would show everything as if it were filtered
                raise InvalidRequest(f"There is no such parameter; there are {', '.join(PARAMETERS)}.", param=name)
        journal = self._kept()

        def wanted(record: Record) -> bool:
            return (
                (outcome is None or (record.ended > 0 and record.outcome is outcome))
                and (tenant is None or record.tenant == tenant)
                and (model is None or record.model == model)
            )

        newest = heapq.nlargest(limit, filter(wanted, journal.newest()), key=lambda record: record.began)
        waiting = self.admission.waiting_stories()
        told = [self.explanations.summary(each, waits=id(each.story) in waiting) for each in newest]
        return _answer(Requests(gateway=self.explanations.gateway, kept=journal.most, requests=told))

    async def request(self, request_id: str) -> Response:
        record = self._kept().find(request_id)
        if record is None:
            raise UnknownPath(self._unknown(request_id))
        assert record.story is not None, "the journal has given it one"
        return _answer(self.explanations.explanation(record, self.admission.place_of(record.story)))

    def _kept(self) -> Journal:
        if self.journal is None:
            raise UnknownPath("This gateway keeps no journal: JOURNAL_REQUESTS is 0.")
        return self.journal

    def _unknown(self, request_id: str) -> str:
        """An id of ours says which gateway gave it."""
        ours, given = self.explanations.gateway, _GIVEN.fullmatch(request_id)
        if given is not None and given[1] != ours:
            return (
                f"This request is not known here: its id is of gateway '{given[1]}', and this is gateway '{ours}' "
                "(a gateway is another one after a restart)."
            )
        kept = self.journal.most if self.journal is not None else 0
        return f"This request is not known here: this gateway keeps the last {kept} that have ended (JOURNAL_REQUESTS)."


def _answer(page: Requests | Explanation) -> Response:
    return Response(msgspec.json.encode(page), media_type="application/json", headers={"cache-control": "no-store"})
