"""What the gateway asks of an engine."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from app.generation import Call
from app.reliability.limit import Load

Exchange = AbstractAsyncContextManager[AsyncIterator[bytes]]

PassOn = Callable[[bytes], bool]
"""Takes a block, at once and without waiting; whether it can take more."""


@runtime_checkable
class Flowing(Protocol):
    """Blocks that need no task to be woken for each of them."""

    async def flow(self, pass_on: PassOn) -> bool:
        """As `flow` below."""
        ...


async def flow(blocks: AsyncIterator[bytes], pass_on: PassOn) -> bool:
    """Hand on what comes: `True` as soon as no more can be taken, `False` when all has come."""
    if isinstance(blocks, Flowing):
        return await blocks.flow(pass_on)
    async for block in blocks:
        if not pass_on(block):
            return True
    return False


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
