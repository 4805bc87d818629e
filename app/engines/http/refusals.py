"""What an engine's error means for the gateway, whoever wrote the engine. Its own words are for our log only."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import msgspec

from app.errors import (
    ContextTooLong,
    EngineBusy,
    EngineError,
    EngineFailed,
    EngineForgot,
    EngineLacks,
    EngineMisconfigured,
    EngineNonsense,
    EngineRefused,
)

DETAIL_CHARS = 500
MAX_RETRY_AFTER_S = 300.0
FORGOTTEN_S = 1.0
"""By then a probe has seen what the engine serves now."""

_PARAM = re.compile(r"[A-Za-z0-9_.\[\]]{1,64}")
_CODE = re.compile(r"[a-z_]{1,64}")
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_UNKNOWN_MODEL = re.compile(r"\bmodel\b.{0,300}\bdoes not exist\b", re.IGNORECASE | re.DOTALL)
_TOO_LONG = re.compile(
    r"(?:maximum (?:context|model) length|model's context length|model \(context length|greater than max_model_len)"
    r"(?: is| of)?[ =]?\(?(?P<tokens>\d{1,9})?",
    re.IGNORECASE,
)
"""vLLM has said it in several ways, SGLang in others; the number follows where there is one."""


class Said(NamedTuple):
    """The fields of an engine's error, as far as they are there and have the type they should have."""

    message: str = ""
    type: str = ""
    param: str = ""
    code: str = ""

    @classmethod
    def of(cls, body: bytes) -> "Said":
        try:
            whole: Any = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return cls()
        error = whole.get("error", whole) if isinstance(whole, dict) else None  # vLLM once wrote it without `error`
        if not isinstance(error, dict):
            return cls(message=error) if isinstance(error, str) else cls()
        return cls(*(value if isinstance(value := error.get(field), str) else "" for field in cls._fields))


def refusal(status: int, headers: Mapping[bytes, bytes], body: bytes, api_key: str | None = None) -> EngineError:
    """The error for an answer that is not 200. `api_key` is what must not be repeated should the engine do so."""
    error = _meaning(status, headers, Said.of(body))
    error.detail = f"{status} {_printable(body.decode(errors='replace'), api_key)}".rstrip()
    return error


def _meaning(status: int, headers: Mapping[bytes, bytes], said: Said) -> EngineError:
    match status:
        case 429 | 503:
            return EngineBusy(retry_after=retry_after(headers))
        case 401 | 403:
            return EngineMisconfigured()
        case 404 | 405:
            return EngineForgot(retry_after=FORGOTTEN_S) if _unknown_model(said) else EngineLacks()
        case 501:
            return EngineLacks()
        case 400 | 413 | 422 if said.code == "context_length_exceeded" or _TOO_LONG.search(said.message):
            return _too_long(said)
        case _ if 400 <= status < 500 and status != 408:  # 408 is about the connection, not about the request
            return EngineRefused(param=_if(_PARAM, said.param), code=_if(_CODE, said.code))
        case _ if 300 <= status < 400:
            return EngineMisconfigured("The engine redirects instead of answering.")
        case _ if status == 408 or 500 <= status < 600:
            return EngineFailed()
        case _:
            return EngineNonsense()


def _unknown_model(said: Said) -> bool:
    return (
        said.code == "model_not_found"
        or said.type in ("NotFoundError", "model_not_found")
        or _UNKNOWN_MODEL.search(said.message) is not None
    )


def _too_long(said: Said) -> ContextTooLong:
    found = _TOO_LONG.search(said.message)
    if found is None or found["tokens"] is None:
        return ContextTooLong()
    tokens = int(found["tokens"])
    return ContextTooLong(
        f"The prompt and the tokens asked for do not fit into the model's context of {tokens} tokens."
    )


def _if(pattern: re.Pattern[str], value: str) -> str | None:
    return value if pattern.fullmatch(value) else None


def retry_after(headers: Mapping[bytes, bytes]) -> float | None:
    """In seconds. A date is read by the engine's own clock where it sends one."""
    value = headers.get(b"retry-after", b"").decode("latin-1").strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), MAX_RETRY_AFTER_S)
    then = _date(value)
    if then is None:
        return None
    now = _date(headers.get(b"date", b"").decode("latin-1")) or datetime.now(UTC)
    return min(max((then - now).total_seconds(), 0.0), MAX_RETRY_AFTER_S)


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _printable(text: str, api_key: str | None) -> str:
    if api_key:
        text = text.replace(api_key, "[key]")
    return "".join(c if c.isprintable() else " " for c in text[:DETAIL_CHARS])
