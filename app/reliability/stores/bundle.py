"""What is asked of Redis in one turn of the event loop goes there together: one write, one read and one time limit,
where each call by itself would need its own. Under load that is most of what asking Redis costs.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from app.clock import Clock
from app.reliability.stores.patience import Patience
from app.reliability.stores.redis_pool import Command, ExchangeFailed, Pool

MOST = 100
"""Calls in one bundle. Those beyond need not wait for all of these."""

Told = Callable[[], None]
Asked = tuple[Sequence[Command], "asyncio.Future[list[Any]]", Told]


def nobody() -> None:
    """Wants to hear of it."""


class Bundle:
    def __init__(self, pool: Pool, limit_s: float, clock: Clock) -> None:
        self._pool = pool
        self._limit_s = limit_s
        self._clock = clock
        self._asked: list[Asked] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def exchange(self, commands: Sequence[Command], abandoned: Told = nobody) -> list[Any]:
        """As the pool's, or `TimeoutError`. Who gives up waiting takes nothing from the others: what was sent is done
        all the same, or not, and `abandoned` is called once it can not be done any more or has been."""
        loop = asyncio.get_running_loop()
        answers: asyncio.Future[list[Any]] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._send_all)
        self._asked.append((commands, answers, abandoned))
        try:
            return await answers
        except asyncio.CancelledError:
            if not answers.cancelled():  # they came in the same moment
                abandoned()
            raise

    async def aclose(self) -> None:
        for task in self._sending:
            task.cancel()
        if self._sending:
            await asyncio.wait(self._sending)

    def _send_all(self) -> None:
        asked, self._asked = [each for each in self._asked if not each[1].cancelled()], []
        for first in range(0, len(asked), MOST):
            task = asyncio.get_running_loop().create_task(self._send(asked[first : first + MOST]))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, asked: list[Asked]) -> None:
        try:
            async with Patience(self._limit_s, self._clock):
                answers = await self._pool.exchange([command for commands, _, _ in asked for command in commands])
        except (TimeoutError, ExchangeFailed) as error:
            for _, waiting, abandoned in asked:
                if waiting.cancelled():
                    abandoned()
                else:
                    waiting.set_exception(error)
        except BaseException:
            for _, waiting, abandoned in asked:
                waiting.cancel()
                abandoned()
            raise
        else:
            at = 0
            for commands, waiting, abandoned in asked:
                if waiting.cancelled():
                    abandoned()
                else:
                    waiting.set_result(answers[at : at + len(commands)])
                at += len(commands)
