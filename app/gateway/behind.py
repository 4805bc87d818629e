"""The FastAPI application behind the edge: docs, models, health, metrics, and errors in one shape."""

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from app.errors import GatewayError, InvalidRequest, Unforeseen, UnknownPath, WrongMethod
from app.gateway.answers import headers_of
from app.gateway.endpoints import Endpoints
from app.gateway.openapi import with_hot_paths
from app.gateway.reference import POLICY, page
from app.wire.errors import error_json, row_of

DOCS = frozenset({"/docs", "/openapi.json"})

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def fastapi_app(endpoints: Endpoints, others: Iterable[APIRouter], lifespan: Lifespan) -> FastAPI:
    app = FastAPI(
        title="gllm",
        version=endpoints.version,
        description="An observable production gateway for language models you run yourself.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(endpoints.router())
    for router in others:
        app.include_router(router)
    app.add_exception_handler(GatewayError, _answer)
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_exception_handler(Exception, _answer)  # answered here and raised again: the edge logs it
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        return app.openapi_schema or with_hot_paths(plain())

    written = functools.cache(lambda: page(openapi()))

    async def docs() -> Response:
        return HTMLResponse(written(), headers={"content-security-policy": POLICY})

    app.add_api_route("/docs", docs, methods=["GET", "HEAD"], include_in_schema=False)
    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this as the way to extend the document
    return app


async def _answer(request: Request, error: Exception) -> Response:
    ours = _ours(request, error)
    response = Response(error_json(ours), row_of(ours).status, media_type="application/json")
    for name, value in headers_of(ours):
        response.headers[name.decode()] = value.decode()
    return response


def _ours(request: Request, error: Exception) -> GatewayError:
    match error:
        case GatewayError():
            return error
        case HTTPException(status_code=404):
            return UnknownPath()
        case HTTPException(status_code=405, headers=headers):
            return WrongMethod(allow=", ".join(sorted((headers or {})["Allow"].split(", "))))
        case RequestValidationError() if error.errors()[0]["loc"][0] == "query":
            found = error.errors()[0]
            return InvalidRequest(f"{found['msg']}.", param=found["loc"][-1])
        case HTTPException() | RequestValidationError():
            return InvalidRequest()
        case _:
            return Unforeseen()
