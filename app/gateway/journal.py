"""What operators ask about single calls: which there were lately, and why one went as it did (`gllm explain`)."""

import heapq
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.errors import InvalidRequest, Outcome, UnknownPath
from app.gateway.admission import Admission
from app.gateway.described import described
from app.gateway.endpoints import READING
from app.gateway.siblings import Query as Asked
from app.gateway.siblings import Siblings
from app.telemetry.explaining import Explanations
from app.telemetry.explanation import Explanation, Requests
from app.telemetry.journal import Journal
from app.telemetry.record import Record

REQUESTS = "/admin/requests"
ONE = REQUESTS + "/{request_id}"
PARAMETERS = ("outcome", "tenant", "model", "limit")
SHOWN, MOST_SHOWN = 50, 1_000

_PAGES = msgspec.json.Decoder(Requests)
_GIVEN = re.compile(r"req-([0-9a-f]{4})[0-9a-f]{20}")


class Answer(msgspec.Struct, frozen=True):
    """Of one process about one call."""

    gateway: str
    call: Explanation | None


_ANSWERS = msgspec.json.Decoder(Answer)


class Wanted(NamedTuple):
    """Which calls; `outcome` leaves out those that still run."""

    limit: int
    outcome: str | None = None
    tenant: str | None = None
    model: str | None = None

    def takes(self, record: Record) -> bool:
        return (
            (self.outcome is None or (record.ended > 0 and record.outcome == self.outcome))
            and (self.tenant is None or record.tenant == self.tenant)
            and (self.model is None or record.model == self.model)
        )


@dataclass(frozen=True)
class JournalPages:
    journal: Journal | None
    admission: Admission
    explanations: Explanations
    siblings: Siblings

    def __post_init__(self) -> None:
        self.siblings.tell("requests", self._told_newest)
        self.siblings.tell("request", self._told_one)

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
        for name in request.query_params:
            if name not in PARAMETERS:  # a misspelt filter would show everything as if it were filtered
                raise InvalidRequest(f"There is no such parameter; there are {', '.join(PARAMETERS)}.", param=name)
        wanted = Wanted(limit, outcome, tenant, model)
        own = self._newest(self._kept(), wanted)
        query = {name: str(value) for name, value in wanted._asdict().items() if value is not None}
        heard = await self.siblings.ask("requests", query)
        pages = [own, *map(_PAGES.decode, heard.pages)]
        newest = heapq.nlargest(limit, (each for page in pages for each in page.requests), key=lambda each: each.came)
        kept = sum(page.kept for page in pages)
        return _answer(Requests(gateway=own.gateway, kept=kept, requests=newest, silent=heard.silent))

    async def request(self, request_id: str) -> Response:
        own = self._one(self._kept(), request_id)
        heard = await self.siblings.ask("request", {"id": request_id})
        answers = [own, *map(_ANSWERS.decode, heard.pages)]
        calls = [each.call for each in answers if each.call is not None]
        if not calls:
            raise UnknownPath(self._unknown(request_id, [each.gateway for each in answers], heard.silent))
        return _answer(max(calls, key=lambda call: call.came))

    def _newest(self, journal: Journal, wanted: Wanted) -> Requests:
        newest = heapq.nlargest(wanted.limit, filter(wanted.takes, journal.newest()), key=lambda record: record.began)
        waiting = self.admission.waiting_stories()
        told = [self.explanations.summary(each, waits=id(each.story) in waiting) for each in newest]
        return Requests(gateway=self.explanations.gateway, kept=journal.most, requests=told)

    def _one(self, journal: Journal, request_id: str) -> Answer:
        record = journal.find(request_id)
        if record is None:
            return Answer(self.explanations.gateway, None)
        assert record.story is not None, "the journal has given it one"
        call = self.explanations.explanation(record, self.admission.place_of(record.story))
        return Answer(self.explanations.gateway, call)

    async def _told_newest(self, query: Asked) -> bytes:
        wanted = Wanted(int(query["limit"]), query.get("outcome"), query.get("tenant"), query.get("model"))
        return msgspec.json.encode(self._newest(self._kept(), wanted))

    async def _told_one(self, query: Asked) -> bytes:
        return msgspec.json.encode(self._one(self._kept(), query["id"]))

    def _kept(self) -> Journal:
        if self.journal is None:
            raise UnknownPath("This gateway keeps no journal: JOURNAL_REQUESTS is 0.")
        return self.journal

    def _unknown(self, request_id: str, gateways: Sequence[str], silent: Sequence[str]) -> str:
        """An id of ours says which gateway gave it."""
        given = _GIVEN.fullmatch(request_id)
        if silent:
            return f"This request is not known here, as far as was heard: {', '.join(silent)} did not answer."
        if given is not None and given[1] not in gateways:
            ours = f"this is gateway '{gateways[0]}'"
            if len(gateways) > 1:
                ours = f"the processes here are {', '.join(map(repr, gateways))}"
            return (
                f"This request is not known here: its id is of gateway '{given[1]}', and {ours} "
                "(a gateway is another one after a restart)."
            )
        kept = self.journal.most if self.journal is not None else 0
        who = "this gateway keeps" if len(gateways) == 1 else "each process keeps"
        return f"This request is not known here: {who} the last {kept} that have ended (JOURNAL_REQUESTS)."


def _answer(page: Requests | Explanation) -> Response:
    return Response(msgspec.json.encode(page), media_type="application/json", headers={"cache-control": "no-store"})
