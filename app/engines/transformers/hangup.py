"""Work that ends when its client hangs up."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from app.errors import ClientGone

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; or `ClientGone` as soon as the client is, and then the work has been cancelled and is over.

    The one reader of `receive` from here on: the body must have been read.
    """
    gone = False

    async def watch(worker: asyncio.Task[None]) -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        worker.cancel()

    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        try:
            outcome.set_result(await work)
        except Exception as error:  # carried out of the group, which would wrap it
            outcome.set_exception(error)

    async with asyncio.TaskGroup() as group:
        worker = group.create_task(run())
        watcher = group.create_task(watch(worker))
        worker.add_done_callback(lambda _: watcher.cancel())
    if gone and not outcome.done():
        raise ClientGone
    return await outcome
