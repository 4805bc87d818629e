"""What the gateway asks of an engine."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from app.generation import Call
from app.reliability.limit import Load

Exchange = AbstractAsyncContextManager[AsyncIterator[bytes]]

PassOn = Callable[[bytes], bool]
"""Takes a block, at once and without waiting; whether it can take more."""


async def flow(blocks: AsyncIterator[bytes], pass_on: PassOn) -> bool:
    """Hand on what comes: `True` as soon as no more can be taken, `False` when all has come. Blocks that have a `flow`
    of their own need no task to be woken for each of them."""
    own: Callable[[PassOn], Awaitable[bool]] | None = getattr(blocks, "flow", None)
    if own is not None:
        return await own(pass_on)
    async for block in blocks:
        if not pass_on(block):
            return True
    return False


async def whole(blocks: AsyncIterator[bytes]) -> bytes:
    """All that comes, at once. Blocks that have a `whole` of their own are one."""
    own: Callable[[], Awaitable[bytes]] | None = getattr(blocks, "whole", None)
    if own is not None:
        return await own()
    return b"".join([block async for block in blocks])


class Engine(Protocol):
    def open(self, call: Call) -> Exchange:
        """The answer to `call`, as blocks of bytes in order.

        A stream comes in blocks of whole events; anything else is one block, the whole body. Entering raises
        an `EngineError` if the engine does not answer 200; iterating raises one if the answer breaks off. Either
        raises `DeadlinePassed` once `call.expires_at` has come: whoever opens needs no timer of its own. Leaving the
        block before the end aborts the engine's work, and nothing of it is left when `__aexit__` returns.
        """
        ...

    async def models(self) -> dict[str, int | None]:
        """The models it serves now, each with its context length where it tells one. Raises if it is not ready."""
        ...

    async def load(self) -> Load | None:
        """How busy it is by its own account; `None` if it does not say. Raises as `models` does."""
        ...

    async def aclose(self) -> None:
        """Give back connections. No exchange is open any more."""
        ...
