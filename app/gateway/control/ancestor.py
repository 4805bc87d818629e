"""GLLM's endpoints, in its own words: `/add_worker`, `/load_model`, `/release_gpus`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from app.cluster.member import names_of
from app.cluster.members import Members
from app.cluster.swap import explained
from app.cluster.swaps import Swaps
from app.errors import ClusterError, InvalidRequest, NoWorkers
from app.gateway.control.bodies import AddWorker, LoadModel, Release, read
from app.gateway.control.operators import CANCEL, CANCELLED_S
from app.gateway.described import TEXT, described
from app.gateway.siblings import Siblings

log = logging.getLogger("gllm")

ADD_WORKER = "/add_worker"
LOAD_MODEL = "/load_model"
RELEASE_GPUS = "/release_gpus"

REQUESTED = "Model load requested successfully."
RELEASED = "Gpus released"
NONE_TO_RELEASE = "No workers to release gpus from."
NOT_RELEASED = "Failed to release gpus"


@dataclass(frozen=True)
class Ancestor:
    members: Members
    swaps: Swaps
    siblings: Siblings

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(prefix + path for path in (ADD_WORKER, LOAD_MODEL, RELEASE_GPUS) for prefix in ("", "/v1"))

    def router(self) -> APIRouter:
        router = APIRouter()
        table: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
            (ADD_WORKER, self.add_worker, described("A worker says where it is", TEXT, asks=AddWorker)),
            (LOAD_MODEL, self.load_model, described("Load a model on all workers", TEXT, asks=LoadModel)),
            (
                RELEASE_GPUS,
                self.release_gpus,
                described("Stop all engines, and give their GPUs back", TEXT, asks=Release, may_be_empty=True),
            ),
        ]
        for path, answer, said in table:
            router.add_api_route(path, answer, methods=["POST"], **said)
            router.add_api_route("/v1" + path, answer, methods=["POST"], include_in_schema=False)
        return router

    async def add_worker(self, request: Request) -> Response:
        """Again and again, by each worker: it is how a gateway that was away learns where they are."""
        try:
            url = (await read(request, AddWorker)).url
        except InvalidRequest as error:
            return PlainTextResponse(f"Invalid request data: {error.message}", 400)
        await self.members.announce(url)
        current = self.members.current
        return PlainTextResponse("" if current is None else names_of(current)[0])

    async def load_model(self, request: Request) -> Response:
        body = await read(request, LoadModel)
        try:
            swap = await self.swaps.begin(body.wish)
        except NoWorkers:
            if body.wait:
                raise
            return PlainTextResponse(REQUESTED)  # those that come will be told
        if body.wait:
            await swap.feed.ended()
            if swap.failure is not None:
                raise explained(swap.failure)
        return PlainTextResponse(REQUESTED)

    async def release_gpus(self, request: Request) -> Response:
        body = await read(request, Release, empty=Release())
        await self.siblings.ask(CANCEL, {"keeps_gpus": "no"}, CANCELLED_S)
        ended = await self.swaps.release_all(body.drain_s)
        if not ended:
            return PlainTextResponse(NONE_TO_RELEASE)
        failed = {name: how.message for name, how in ended.items() if isinstance(how, ClusterError)}
        if failed:
            said = "".join(f"\n {name}: {message}" for name, message in failed.items())
            return PlainTextResponse(NOT_RELEASED + said, 500)
        return PlainTextResponse(RELEASED)
