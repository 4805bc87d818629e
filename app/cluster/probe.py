"""Asks every replica, again and again, whether it is there and what it serves."""

import asyncio
import logging
from contextlib import suppress

from app.cluster.fleet import Fleet
from app.cluster.replica import Replica, State
from app.errors import (
    EngineError,
    EngineForgot,
    EngineMisconfigured,
    EngineOutOfReach,
    EngineRefused,
    EngineUnreachable,
)

log = logging.getLogger("gllm")

MISSES_ALLOWED = 2
"""A busy engine may miss a probe; one that refuses connections is gone at once."""

IMPATIENT_S = 0.25
"""Between probes while a replica is still starting."""


FIRST_LOOK_S = 1.0


class Prober:
    def __init__(self, fleet: Fleet, every_s: float, *, asks_load: bool = False) -> None:
        """`asks_load`: what engines tell of their load is wanted. For a replica whose limit adapts it always is."""
        self._fleet = fleet
        self._every_s = every_s
        self._asks_load = asks_load
        self._asked: set[Replica] = set()

    async def run(self) -> None:
        """A replica that is slow to answer is not asked again meanwhile, and keeps no other one waiting."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._ask(probes)
                starting = any(replica.state is State.STARTING for replica in self._fleet.replicas)
                await asyncio.sleep(min(self._every_s, IMPATIENT_S) if starting else self._every_s)

    async def round(self) -> None:
        """Ask each once, and wait for the answers."""
        async with asyncio.TaskGroup() as probes:
            self._ask(probes)

    async def look_first(self) -> None:
        """At those that are known from the start: what they serve is known before anybody asks for it. One that does
        not answer keeps nobody waiting for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await self.round()

    async def look(self, replica: Replica) -> None:
        """At this one, now."""
        await self._probe(replica)

    def _ask(self, probes: asyncio.TaskGroup) -> None:
        for replica in self._fleet.replicas:
            if replica not in self._asked:
                self._asked.add(replica)
                probes.create_task(self._probe(replica))

    async def _probe(self, replica: Replica) -> None:
        try:
            self._fleet.answered(replica, await replica.engine.models())
            await self._look_at_load(replica)
        except EngineOutOfReach as error:
            log.debug("replica %s could not be asked: %s", replica.name, error.detail)
        except EngineError as error:
            self._missed(replica, error)
        except Exception as error:  # one engine nobody foresaw must not end the probing of the others
            log.exception("the probe of replica %s failed unforeseen", replica.name)
            self._missed(replica, error)
        finally:
            self._asked.discard(replica)

    async def _look_at_load(self, replica: Replica) -> None:
        """That it does not tell makes it no worse: its models have said that it is well."""
        if not replica.tells_load or (replica.limit is None and not self._asks_load):
            return
        try:
            load = await replica.engine.load()
        except EngineError as error:
            log.debug("replica %s has not told its load: %s", replica.name, type(error).__name__)
            replica.tells_load = not isinstance(error, EngineRefused | EngineForgot | EngineMisconfigured)
            replica.untold()
            return
        if load is None:
            replica.tells_load = False
            return
        self._fleet.told(replica, load)
        if replica.limit is not None:
            self._fleet.resize(replica, replica.limit.observe(load, replica.taken, self._fleet.wanted(replica)))

    def _missed(self, replica: Replica, error: Exception) -> None:
        replica.missed_probes += 1
        replica.untold()
        if isinstance(error, EngineUnreachable) or replica.missed_probes > MISSES_ALLOWED:
            self._fleet.failed(replica, type(error).__name__)
