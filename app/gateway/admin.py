"""What operators ask: who used how much. The door lets only them through to here (`auth`)."""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from app.errors import InvalidRequest, StoreDown
from app.gateway.endpoints import READING
from app.reliability.ledger import Amounts, BadPeriod, Book, Selection, total
from app.reliability.stores.books import Books, Report, Unreadable

USAGE = "/admin/usage"
DAY: dict[str, Any] = {"format": "date"}


class Used(BaseModel):
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class UsageRow(Used):
    day: date
    tenant: str
    model: str


class UsagePage(BaseModel):
    object: Literal["usage"] = "usage"
    first: date = Field(serialization_alias="from")
    last: date = Field(serialization_alias="to")
    scope: Literal["gateway", "cluster"]
    note: str | None
    rows: list[UsageRow]
    totals: Used


@dataclass(frozen=True)
class Admin:
    books: Books

    @property
    def paths(self) -> frozenset[str]:
        return frozenset((USAGE,))

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route(USAGE, self.usage, methods=READING, include_in_schema=False)
        router.add_api_route(USAGE, self.usage, methods=["GET"], summary="Tokens used, by tenant, model and day")
        return router

    async def usage(
        self,
        request: Request,
        since: Annotated[str | None, Query(alias="from", json_schema_extra=DAY)] = None,
        until: Annotated[str | None, Query(alias="to", json_schema_extra=DAY)] = None,
        tenant: str | None = None,
        model: str | None = None,
    ) -> UsagePage:
        """Days are those of UTC; without `from` and `to` the last thirty."""
        _check_names(request)
        try:
            selection = Selection.of(since, until, self.books.ledger.today(), tenant, model)
        except BadPeriod as error:
            raise InvalidRequest(str(error), param=error.param) from None
        try:
            report = await self.books.report(selection)
        except Unreadable:
            text = "The usage ledger cannot be read at the moment."
            raise StoreDown(text, code="ledger_unavailable", retry_after=1.0) from None
        return _page(selection, report)


def _check_names(request: Request) -> None:
    """A misspelt filter would show everything as if it were filtered."""
    for name in request.query_params:
        if name not in ("from", "to", "tenant", "model"):
            raise InvalidRequest("There is no such parameter; there are from, to, tenant and model.", param=name)


def _page(selection: Selection, report: Report) -> UsagePage:
    return UsagePage(
        first=selection.first,
        last=selection.last,
        scope=report.scope,
        note=report.note,
        rows=_rows(report.book),
        totals=Used(**_counts(total(report.book))),
    )


def _rows(book: Book) -> list[UsageRow]:
    return [
        UsageRow(day=day, tenant=tenant, model=model, **_counts(amounts))
        for (day, tenant, model), amounts in sorted(book.items(), key=lambda item: item[0])
    ]


def _counts(amounts: Amounts) -> dict[str, int]:
    return msgspec.structs.asdict(amounts)
