"""`uvicorn app.main:app`: a gateway as the environment and `.env` describe it."""

from functools import cache
from typing import Any

from app.gateway.app import Gateway
from app.gateway.listener import CannotListen
from app.settings import BadSetting, Settings


@cache
def gateway() -> Gateway:
    try:
        return Gateway(Settings.load())
    except (BadSetting, CannotListen) as error:
        raise SystemExit(f"gllm: {error}") from None


def __getattr__(name: str) -> Any:
    """`app` is made when a server asks for it, not when this is imported: imports read no environment."""
    if name == "app":
        return gateway().app
    raise AttributeError(name)
