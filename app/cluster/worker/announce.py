"""Tells gateways where to look for this worker, again with every heartbeat. What they want to know they ask."""

import asyncio
from collections.abc import Callable

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential

from app.engines.http.refusals import Said

ANSWER_S = 5.0
LONGEST_PAUSE = 5
"""In heartbeats. A gateway that comes back must not wait long for its workers."""


class NotRegistered(Exception):
    """The text is the end of a sentence that begins with the gateway."""


class Announcer:
    def __init__(
        self,
        own_url: str,
        gateways: tuple[str, ...],
        secret: str | None,
        every_s: float,
        told: Callable[[str], None],
    ) -> None:
        """`told` hears a sentence when a gateway comes or goes."""
        self._own_url = own_url
        self._said: dict[str, str] = dict.fromkeys(gateways, "")
        self._headers = {"authorization": f"Bearer {secret}"} if secret else {}
        self._every_s = every_s
        self._told = told

    async def run(self) -> None:
        """One gateway that is away keeps no other one waiting."""
        async with (
            httpx.AsyncClient(headers=self._headers, timeout=ANSWER_S, trust_env=False) as http,
            asyncio.TaskGroup() as tasks,
        ):
            for gateway in self._said:
                tasks.create_task(self._keep(gateway, http))

    async def _keep(self, gateway: str, http: httpx.AsyncClient) -> None:
        tries = AsyncRetrying(
            retry=retry_if_exception_type(NotRegistered),
            wait=wait_exponential(multiplier=self._every_s, max=LONGEST_PAUSE * self._every_s),
            before_sleep=lambda state: self._away(gateway, state),
        )
        while True:
            await tries(self._register, gateway, http)
            self._say(gateway, f"Registered with the gateway at {gateway}.")
            await asyncio.sleep(self._every_s)

    async def _register(self, gateway: str, http: httpx.AsyncClient) -> None:
        try:
            answer = await http.post(f"{gateway}/add_worker", json={"address": self._own_url})
        except httpx.TransportError as error:
            raise NotRegistered(f"does not answer ({type(error).__name__}).") from None
        if answer.status_code in (401, 403):
            raise NotRegistered("does not know this worker's secret (CLUSTER_SECRET).")
        if answer.status_code != 200:
            said = Said.of(answer.content).message
            raise NotRegistered(f"does not take this worker: it answers {answer.status_code}. {said}".rstrip())

    def _away(self, gateway: str, state: RetryCallState) -> None:
        why = state.outcome and state.outcome.exception()
        self._say(gateway, f"The gateway at {gateway} {why}")

    def _say(self, gateway: str, sentence: str) -> None:
        if self._said[gateway] != sentence:
            self._said[gateway] = sentence
            self._told(sentence)
