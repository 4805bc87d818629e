"""Workers in this process, one for each replica of an engine: entered one by one, ended all at once."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from app.cluster.launchers.plan import HOST, NOT_TRACED, Build, Machine, doubts, part
from app.cluster.launchers.ports import LAST_PORT
from app.cluster.worker.site import OnProgress, Post
from app.cluster.worker.worker import LocalWorker
from app.settings import Engine, Telemetry

log = logging.getLogger("gllm")


@asynccontextmanager
async def crew(
    engine: Engine,
    state_dir: Path,
    *,
    on_progress: OnProgress,
    heartbeat_s: float,
    telemetry: Telemetry = NOT_TRACED,
    build: Build | None = None,
) -> AsyncIterator[tuple[LocalWorker, ...]]:
    """They share the machine. None of them has an order yet."""
    for doubtful in () if build else doubts(engine, telemetry):
        log.warning("%s", doubtful)
    machine = Machine.here()
    async with AsyncExitStack() as stack:
        workers = []
        for number in range(engine.replicas):
            post = Post(f"engine-{number}", HOST, "", *part(engine, machine, number))
            own = replace(engine, port_start=min(engine.port_start + number, LAST_PORT))
            worker = LocalWorker(
                post,
                own,
                state_dir,
                on_progress=on_progress,
                heartbeat_s=heartbeat_s,
                telemetry=telemetry,
                build=build,
            )
            workers.append(await stack.enter_async_context(worker))
        try:
            yield tuple(workers)
        finally:
            await asyncio.gather(*(worker.stop(drain_s=0.0) for worker in workers))
