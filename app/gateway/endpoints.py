"""What FastAPI serves: the models, the gateway's health, its metrics. The hot endpoints are in `edge`."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from app.clock import Clock
from app.cluster.fleet import Fleet
from app.cluster.replica import State
from app.errors import Draining, NoReplica, UnknownModel, UnknownPath
from app.gateway.admission import Admission
from app.gateway.auth import TENANT
from app.gateway.replays import Replays
from app.telemetry.prometheus import Metrics
from app.tenant import Tenant
from app.wire.headers import idempotency_key

READING = ["GET", "HEAD"]
PROBED = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""Asked by machines, every few seconds."""


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gllm"
    max_model_len: int | None
    parent: str | None = None
    """Of an adapter: the model that it is on top of."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["healthy", "starting", "unhealthy", "draining"]
    version: str
    model: str | None
    models: list[str]
    uptime: float
    requests_total: int
    requests_active: int
    replicas: dict[str, str]


_SAID: dict[str, dict[str, Any]] = {
    "/health": {"responses": {503: {"model": Health, "description": "Not healthy, and why"}}},
    "/metrics": {"response_class": PlainTextResponse},
}


@dataclass(frozen=True)
class Endpoints:
    fleet: Fleet
    admission: Admission
    replays: Replays
    metrics: Metrics | None
    clock: Clock
    version: str
    began: float
    began_unix: int
    parent_of: Callable[[str], str | None] = lambda name: None

    def router(self) -> APIRouter:
        router = APIRouter()
        for path, answer, summary in self._table():
            router.add_api_route(path, answer, methods=READING, include_in_schema=False)
            if not path.startswith("/models"):
                # Never reached: this one is for the document, which would list HEAD beside GET under the same id.
                said = _SAID.get(path, {})
                router.add_api_route(
                    path, answer, methods=["GET"], summary=summary, operation_id=answer.__name__, **said
                )
        for prefix, shown in (("/v1", True), ("", False)):
            router.add_api_route(
                prefix + "/idempotency-keys/{key}",
                self.give_up,
                methods=["DELETE"],
                status_code=204,
                summary="Nobody comes back for what runs with this key: no grace time",
                include_in_schema=shown,
            )
        return router

    @property
    def paths(self) -> frozenset[str]:
        """Those that may become a label: without a part that a client chooses."""
        return frozenset(path for path, _, _ in self._table() if "{" not in path)

    def _table(self) -> list[tuple[str, Callable[..., Awaitable[Any]], str]]:
        return [
            ("/", self.root, "What this is"),
            ("/health", self.health, "Health, in a few facts"),
            ("/livez", self.livez, "The process answers"),
            ("/readyz", self.readyz, "New work is welcome"),
            ("/metrics", self.metrics_page, "Metrics for Prometheus"),
            ("/v1/models", self.models, "The models served"),
            ("/models", self.models, "The models served"),
            ("/v1/models/{model:path}", self.model, "One model"),
            ("/models/{model:path}", self.model, "One model"),
        ]

    async def root(self) -> dict[str, str]:
        return {"message": "gllm, a gateway for language models", "version": self.version, "docs": "/docs"}

    async def livez(self) -> dict[str, str]:
        return {"status": "ok"}

    async def readyz(self) -> dict[str, str]:
        if self.admission.draining:
            raise Draining
        if not self.fleet.ready:
            raise NoReplica(retry_after=1.0)
        return {"status": "ready"}

    async def health(self, request: Request, response: Response) -> Health:
        """Models and replicas are named to those only who may know them."""
        status = self._status()
        if status != "healthy":
            response.status_code = 503
        tenant = tenant_of(request)
        models = [name for name in self.fleet.served if tenant.may_use(name)]
        replicas = self.fleet.replicas if tenant.admin else []
        return Health(
            status=status,
            version=self.version,
            model=models[0] if models else None,
            models=models,
            uptime=round(self.clock() - self.began, 3),
            requests_total=self.admission.entered,
            requests_active=self.admission.inside,
            replicas={replica.name: replica.standing for replica in replicas},
        )

    def _status(self) -> Literal["healthy", "starting", "unhealthy", "draining"]:
        if self.admission.draining:
            return "draining"
        if self.fleet.ready:
            return "healthy"
        starting = any(replica.state is State.STARTING for replica in self.fleet.replicas)
        return "starting" if starting or self.fleet.coming else "unhealthy"

    async def metrics_page(self, request: Request) -> Response:
        if self.metrics is None:
            raise UnknownPath
        accept = request.headers.get("accept", "")
        content_type, page = await asyncio.to_thread(self.metrics.page, accept)  # streams go on meanwhile
        return Response(page, media_type=content_type)

    async def give_up(self, key: str, request: Request) -> None:
        """What is answered already stays answered; a key that nothing runs with is no mistake."""
        self.replays.give_up(tenant_of(request), idempotency_key(key.encode()))

    async def models(self, request: Request) -> ModelList:
        tenant = tenant_of(request)
        return ModelList(data=[self._model(name) for name in self.fleet.served if tenant.may_use(name)])

    async def model(self, model: str, request: Request) -> ModelCard:
        if model not in self.fleet.served or not tenant_of(request).may_use(model):
            raise UnknownModel(param="model")
        return self._model(model)

    def _model(self, name: str) -> ModelCard:
        length = self.fleet.models[name]
        return ModelCard(id=name, created=self.began_unix, max_model_len=length, parent=self.parent_of(name))


def tenant_of(request: Request) -> Tenant:
    """Whom the edge has let in."""
    tenant: Tenant = request.scope[TENANT]
    return tenant
