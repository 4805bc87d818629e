"""The OpenAPI document: the hot endpoints, and what operators send and get, from the very structs that check it."""

from typing import Any

import msgspec

from app.cluster.control import Released, Status
from app.cluster.progress import Account
from app.gateway.control.bodies import AddWorker, LoadModel, NewAdapter, NewModel, Release
from app.gateway.control.pages import Models, Row, Workers
from app.generation import Route
from app.telemetry.explanation import Explanation, Requests
from app.wire.errors import ERRORS, ErrorBody
from app.wire.requests import REQUESTS

_SUMMARIES = {
    Route.CHAT: "Chat completion",
    Route.COMPLETIONS: "Text completion",
    Route.EMBEDDINGS: "Embeddings",
    Route.RESPONSES: "Responses (where the engine has them)",
    Route.MESSAGES: "Messages in Anthropic's form (where the engine has them)",
    Route.TOKENIZE: "Text to tokens",
    Route.DETOKENIZE: "Tokens to text",
}
_STREAMING = (Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES)
_READING = frozenset((400, 401, 403, 404, 405, 431, 500, 503))
"""What may become of a question that has no body and needs no engine."""
_ALL = frozenset(row.status for row in ERRORS.values())
NOBODY_LEFT = 499
"""In the log only: whoever would read it is gone."""
_ORDERS = (NewModel, LoadModel, AddWorker, Release, NewAdapter)
_PAGES = (Requests, Explanation, Models, Workers, Row, Account, Status, Released)
"""What operators send, and what they get: structs too."""
_REF = "#/components/schemas/{name}"


def with_hot_paths(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's own document, completed."""
    structs = [*(REQUESTS[route] for route in Route), ErrorBody]
    schemas, components = msgspec.json.schema_components([*structs, *_ORDERS, *_PAGES], ref_template=_REF)
    known = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    assert not known.keys() & components.keys(), "two shapes have one name"
    known.update(components)
    error = {"application/json": {"schema": schemas[len(Route)]}}
    for operations in document["paths"].values():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            operation["responses"] = _errors(error, _READING if method == "get" else _ALL) | operation["responses"]
    for route, schema in zip(Route, schemas, strict=False):
        document["paths"][route.value] = {"post": _operation(route, schema, error)}
    return document


def _operation(route: Route, schema: dict[str, Any], error: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if route in _STREAMING:
        answer["text/event-stream"] = {}  # OpenAPI 3.1 has no words for a stream of events
    return {
        "summary": _SUMMARIES[route],
        "operationId": route.name.lower(),
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "The engine's answer, as it came", "content": answer},
            **_errors(error, _ALL),
        },
    }


def _errors(error: dict[str, Any], statuses: frozenset[int]) -> dict[str, Any]:
    codes: dict[int, list[str]] = {}
    for row in ERRORS.values():
        if row.status in statuses and row.status != NOBODY_LEFT:
            codes.setdefault(row.status, []).append(row.code)
    return {str(status): {"description": ", ".join(codes[status]), "content": error} for status in sorted(codes)}
