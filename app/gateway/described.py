"""What the OpenAPI document says of an endpoint whose bodies are structs: FastAPI knows only pydantic's models."""

from typing import Any

import msgspec

Struct = type[msgspec.Struct]

JSON, TEXT = "application/json", "text/plain"


def described(
    summary: str,
    tells: Struct | str,
    *,
    asks: Struct | None = None,
    may_be_empty: bool = False,
    statuses: tuple[int, ...] = (200,),
) -> dict[str, Any]:
    """Arguments of `add_api_route`. `tells`: what is answered; or the media type, of what is no struct."""
    content = {tells: {}} if isinstance(tells, str) else {JSON: {"schema": _named(tells)}}
    said: dict[str, Any] = {
        "summary": summary,
        "responses": {status: {"description": _title(tells), "content": content} for status in statuses},
    }
    if statuses[0] != 200:
        said["status_code"] = statuses[0]
    if asks is not None:
        body = {"required": not may_be_empty, "content": {JSON: {"schema": _named(asks)}}}
        said["openapi_extra"] = {"requestBody": body}
    return said


def _named(struct: Struct) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


def _title(tells: Struct | str) -> str:
    return "Text" if tells == TEXT else "JSON" if isinstance(tells, str) else tells.__name__
