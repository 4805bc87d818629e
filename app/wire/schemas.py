"""JSON schemas in a request. Engines compile them, in the process that serves everybody."""

import re
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from app.errors import InvalidRequest

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_DEPTH = 100
MAX_REPEATS = 100_000
"""Of what a schema may demand at least; it is unrolled when it is compiled."""

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_LEASTS = ("minItems", "minLength", "minProperties", "minContains")
_SUSPECT = re.compile(rb'\$|\\u|"min')


def check_schema(raw: Raw | UnsetType, param: str) -> None:
    """Refuse one that is huge or deep, demands monstrous answers, or would make an engine fetch another one.

    `raw` may also be something around schemas: a tool, a response format.
    """
    if raw is UNSET:
        return
    text = bytes(raw)
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidRequest("This schema is too large.", param=param, code="invalid_schema")
    if _SUSPECT.search(text) or text.count(b"{") + text.count(b"[") > MAX_SCHEMA_DEPTH:
        try:
            _walk(msgspec.json.decode(text), param)
        except (msgspec.DecodeError, RecursionError):
            raise InvalidRequest("This schema cannot be read.", param=param, code="invalid_schema") from None


def _walk(schema: Any, param: str) -> None:
    level = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        for each in level:
            if isinstance(each, dict):
                _check(each, param)
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise InvalidRequest("This schema is nested too deeply.", param=param, code="invalid_schema")


def _inside(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value
    return [each for each in inner if isinstance(each, dict | list)] if isinstance(value, dict | list) else []


def _check(schema: dict[str, Any], param: str) -> None:
    for name in _REFERENCES:
        if isinstance(to := schema.get(name), str) and not to.startswith("#"):
            raise InvalidRequest("A schema may refer only to itself.", param=param, code="invalid_schema")
    for name in _LEASTS:
        if isinstance(least := schema.get(name), int | float) and least > MAX_REPEATS:
            text = f"A schema may demand at most {MAX_REPEATS} of something."
            raise InvalidRequest(text, param=param, code="invalid_schema")
