"""What operators ask of workers and tell them, under `/admin`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi import Query as Param
from fastapi.responses import StreamingResponse

from app.clock import Clock
from app.cluster.adapters import Adapters
from app.cluster.control import Adapter, Released, Status
from app.cluster.fleet import Fleet
from app.cluster.members import Members
from app.cluster.progress import Account
from app.cluster.swap import Swap, explained
from app.cluster.swaps import Swaps
from app.errors import ClusterError, LoadInProgress, UnknownPath
from app.gateway.control.bodies import NewAdapter, NewModel, Release, answer, read
from app.gateway.control.pages import (
    Latest,
    Models,
    Row,
    Served,
    Share,
    Workers,
    news_of,
    row_of,
    rows_of,
    shares_of,
    together,
)
from app.gateway.described import JSON, TEXT, described
from app.gateway.endpoints import READING
from app.gateway.siblings import Query, Siblings
from app.wire.sse import event

MODELS, WORKERS, SWAP, ADAPTERS = "/admin/models", "/admin/workers", "/admin/swap", "/admin/adapters"
ONE = WORKERS + "/{name}"

EVENTS = "text/event-stream"
KEEP_ALIVE_S = 15.0
"""A model may load for long in silence; what stands between us and the client takes that for death."""
MOST_LINES = 10_000
COME_AGAIN_S = 5.0

CANCEL = "cancel"
"""What siblings are asked for."""
CANCELLED_S = 600.0
"""Running answers come to their end first, and models are loaded again."""


@dataclass(frozen=True)
class Operators:
    members: Members
    swaps: Swaps
    adapters: Adapters
    fleet: Fleet
    clock: Clock
    drain_s: float
    siblings: Siblings

    def __post_init__(self) -> None:
        self.siblings.tell("workers", self._told_workers)
        self.siblings.tell("swap", self._told_swap)
        self.siblings.tell(CANCEL, self._told_cancel)

    @property
    def paths(self) -> frozenset[str]:
        return frozenset((MODELS, WORKERS, SWAP, ADAPTERS))

    def router(self) -> APIRouter:
        router = APIRouter()
        for path, endpoint, method, said in self._table():
            if method == "GET":
                router.add_api_route(path, endpoint, methods=READING, include_in_schema=False)
            router.add_api_route(path, endpoint, methods=[method], **said)
        return router

    def _table(self) -> list[tuple[str, Callable[..., Any], str, dict[str, Any]]]:
        release = described("Stop a worker's engine, and give its GPUs back", Released, asks=Release, may_be_empty=True)
        return [
            (MODELS, self.models, "GET", described("Models: served, coming and leaving", Models)),
            (MODELS, self.load, "POST", described("Load a model", Account, asks=NewModel, statuses=(202, 200))),
            (SWAP, self.swap, "GET", described("The latest change of models", Account)),
            (SWAP, self.cancel, "DELETE", described("Give up a change of models, and go back", Account)),
            (WORKERS, self.workers, "GET", described("Workers, and what they do", Workers)),
            (ONE, self.worker, "GET", described("One worker", Row)),
            (ONE + "/drain", self.drain, "POST", described("Send a worker nothing new", Status)),
            (ONE + "/admit", self.admit, "POST", described("Send a drained worker requests again", Status)),
            (ONE + "/release", self.release, "POST", release),
            (ONE + "/logs", self.logs, "GET", described("What a worker's engine says", TEXT)),
            (ADAPTERS, self.put_adapter, "POST", described("Load a LoRA adapter", JSON, asks=NewAdapter)),
            (ADAPTERS + "/{name:path}", self.drop_adapter, "DELETE", described("Unload a LoRA adapter", JSON)),
        ]

    # --- models ---------------------------------------------------------------------------------------------------

    async def models(self) -> Response:
        served = tuple(self._served(name) for name in self.fleet.models)
        return answer(Models(served, self.members.current, await self._latest()))

    async def load(self, request: Request) -> Response:
        """Carried out whether anybody waits for it or not."""
        body = await read(request, NewModel)
        swap = await self.swaps.begin(body.wish)
        if EVENTS in request.headers.get("accept", ""):
            return StreamingResponse(self._news(swap), media_type=EVENTS, headers={"cache-control": "no-store"})
        if not body.wait:
            return answer(swap.account(), 202)
        await swap.feed.ended()
        if swap.failure is not None:
            raise explained(swap.failure)
        return answer(swap.account())

    async def swap(self) -> Response:
        return answer(self._known(await self._latest()))

    async def cancel(self) -> Response:
        """Answered when all serve again what they did."""
        if not self.swaps.running:
            await self.siblings.ask(CANCEL, {}, CANCELLED_S)
        await self.swaps.cancel()
        return answer(self._known(await self._latest()))

    def _known(self, latest: Account | None) -> Account:
        if latest is None:
            raise UnknownPath("No models were changed since this gateway started.")
        return latest

    async def _latest(self) -> Account | None:
        """Of all processes."""
        heard = await self.siblings.ask("swap", {})
        each = [self._own_latest(), *(msgspec.json.decode(page, type=Latest | None) for page in heard.pages)]
        known = [latest for latest in each if latest is not None]
        return max(known, key=lambda latest: latest.began).account if known else None

    def _own_latest(self) -> Latest | None:
        swap = self.swaps.latest
        return None if swap is None else Latest(swap.began, swap.account())

    async def _told_swap(self, query: Query) -> bytes:
        return msgspec.json.encode(self._own_latest())

    async def _told_cancel(self, query: Query) -> bytes:
        if self.swaps.running:
            await self.swaps.cancel(gives_back="keeps_gpus" not in query)
        return b"null"

    async def _news(self, swap: Swap) -> AsyncIterator[bytes]:
        seen = 0
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    seen, steps = await swap.feed.after(seen)
            except TimeoutError:
                yield b": it goes on\n\n"
                continue
            if not steps:
                break
            for step in steps:
                yield event(news_of(swap, step, self.members, self.clock))
        yield event(news_of(swap, None, self.members, self.clock))

    def _served(self, name: str) -> Served:
        parent = self.adapters.parent_of(name)
        bearing = [each for each in self.members.present if each.status and name in each.status.names]
        if parent is not None:
            bearing = [each for each in self.members.present if each.bears(name)]
        workers = tuple(each.name for each in bearing)
        return Served(name, self.fleet.standing(name), workers, parent, self.fleet.models[name])

    # --- workers --------------------------------------------------------------------------------------------------

    async def workers(self) -> Response:
        others = await self._shares()
        return answer(Workers(tuple(together(row, others) for row in rows_of(self.members, self.clock))))

    async def worker(self, name: str) -> Response:
        others = await self._shares()
        return answer(together(row_of(self.members.find(name), self.clock), others))

    async def _shares(self) -> list[dict[str, Share]]:
        """Of each other process."""
        heard = await self.siblings.ask("workers", {})
        return [msgspec.json.decode(page, type=dict[str, Share]) for page in heard.pages]

    async def _told_workers(self, query: Query) -> bytes:
        return msgspec.json.encode(shares_of(self.members))

    async def drain(self, name: str) -> Response:
        return answer(await self.members.reached(name).worker.drain())

    async def admit(self, name: str) -> Response:
        return answer(await self.members.reached(name).worker.admit())

    async def release(self, name: str, request: Request) -> Response:
        body = await read(request, Release, empty=Release())
        self.members.reached(name)
        if not await self.members.at_rest():
            raise LoadInProgress(retry_after=COME_AGAIN_S)
        drain_s = self.drain_s if body.drain_s is None else body.drain_s
        return answer(await self.members.release(name, drain_s))

    async def logs(
        self, name: str, lines: Annotated[int, Param(ge=0, le=MOST_LINES)] = 100, follow: bool = False
    ) -> Response:
        worker = self.members.reached(name).worker
        blocks = worker.logs(lines, follow=follow)
        if follow:
            await worker.status()  # what goes wrong after the head has gone out can be told in the text only
            return StreamingResponse(_to_its_end(blocks), media_type="text/plain; charset=utf-8")
        return Response(b"".join([block async for block in blocks]), media_type="text/plain; charset=utf-8")

    # --- adapters -------------------------------------------------------------------------------------------------

    async def put_adapter(self, request: Request) -> Response:
        body = await read(request, NewAdapter)
        workers = await self.adapters.put(Adapter(name=body.name, path=body.path), body.model)
        return answer({"name": body.name, "parent": self.adapters.parent_of(body.name), "workers": workers})

    async def drop_adapter(self, name: str) -> Response:
        return answer({"name": name, "workers": await self.adapters.drop(name)})


async def _to_its_end(log: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Of a worker that may be lost meanwhile."""
    try:
        async for block in log:
            yield block
    except ClusterError as error:
        yield f"gllm: {error.message}\n".encode()
