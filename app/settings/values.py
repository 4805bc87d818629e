"""How a setting's text becomes its value. A `ValueError` here ends the sentence "NAME …"."""

import ipaddress
import re
import shlex
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+")


def lowered(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def engine_type(value: Any) -> Any:
    """The ancestor called its Transformers engine `simple`."""
    return "transformers" if lowered(value) == "simple" else lowered(value)


def listed(value: Any) -> Any:
    """`a, b` → `("a", "b")`."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def words(value: Any) -> Any:
    """As a shell would split it, though no shell ever sees it."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise ValueError("has a quotation that does not end") from error


def gpus(value: Any) -> Any:
    """`none` → no GPU at all; ids are indices or the UUIDs that nvidia-smi prints."""
    if lowered(value) == "none":
        return ()
    ids = listed(value)
    if ids is not None and len(set(ids)) != len(ids):
        raise ValueError("names a GPU twice")
    return ids


def base_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(base_url(each) for each in urls))


def base_url(url: str) -> str:
    """Without a trailing slash or `/v1`, which people copy along."""
    wrong = ValueError("must be base URLs like http://127.0.0.1:8100 or https://models.example.com")
    url = url.strip()
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise wrong
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise wrong
    if parts.username or parts.password:
        raise ValueError("must not carry a password; use ENGINE_API_KEY")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def presentable(secret: SecretStr) -> SecretStr:
    """It travels in a header."""
    text = secret.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be printable ASCII")
    return secret


def origins(given: tuple[str, ...]) -> tuple[str, ...]:
    """As browsers say them, and programs that are browsers inside (`tauri://localhost`): lower case, without a path."""
    if not all(_ORIGIN.fullmatch(each) for each in given):
        raise ValueError("must be origins like https://chat.example.com or http://localhost:3000, or *")
    return given


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
