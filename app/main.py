"""`uvicorn app.main:app`: a gateway as the environment and `.env` describe it."""

from functools import cache

from app.gateway.answers import Send
from app.gateway.app import Gateway
from app.gateway.edge import Scope
from app.gateway.lifeline import Receive
from app.settings import BadSetting, Settings


@cache
def gateway() -> Gateway:
    try:
        return Gateway(Settings.load())
    except BadSetting as error:
        raise SystemExit(f"gllm: {error}") from None


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the settings when the server starts it, not when it is imported."""
    await gateway().app(scope, receive, send)
