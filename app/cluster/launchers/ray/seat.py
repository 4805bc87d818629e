"""A seat: an actor on the node that Ray chose, which runs one worker there with the GPUs that Ray gave it.

Its worker is kept by a keeper, and keeps its engine by another: with the actor's process, however it ends, both end.
(Ray kills the children of a lost actor, the first keeper among them. Then the worker dies at once, and the second
keeper ends the engine.)
"""

import os
import sys
from pathlib import Path

import ray

from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.process import EngineProcess
from app.cluster.launchers.ray.words import Ended, Wanted

GRACE_S = 5.0
"""From SIGTERM to SIGKILL, for a worker and its engine together."""

PORT = "8976"
"""The first that a worker tries; it takes the next that is free."""

GLLM_WORKER = (sys.executable, "-P", "-c", "import sys; from gllm.cli import main; sys.exit(main())", "worker")

RAYS_OWN = ("RAY_", "OMP_NUM_THREADS")
"""Ray sets the latter to the number of booked CPUs: a worker knows better how many threads its engine should have."""


class Seat:
    def __init__(self, name: str, wanted: Wanted) -> None:
        self._name = name
        self._wanted = wanted
        self._process: EngineProcess | None = None
        self._stopped = False

    async def run(self) -> Ended:
        """One life of the worker. Ray calls this again, on some node, whenever the actor or its node was lost."""
        address = ray.util.get_node_ip_address()
        env = self._env()
        log = LogFile(Path(env.get("STATE_DIR", ".state")) / "logs" / f"{self._name}.worker.log")
        try:
            process = await EngineProcess.start(self._argv(address), env, log=log, told=_say, grace_s=GRACE_S)
            async with process:
                self._process = process
                if self._stopped:
                    await process.stop()
                return Ended(await process.wait(), tuple(process.tail))
        finally:
            log.close()

    async def stop(self) -> None:
        """Returns when the worker and its engine are gone."""
        self._stopped = True
        if self._process:
            await self._process.stop()

    def _argv(self, address: str) -> tuple[str, ...]:
        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"] if self._wanted.gpus else ()
        return (
            *(self._wanted.program or GLLM_WORKER),
            *("--name", self._name),
            *("--host", address, "--port", PORT),
            *("--gpus", ",".join(gpus) or "none"),
        )

    def _env(self) -> dict[str, str]:
        """Of the node where it says where things are, of the launcher where it says what to do."""
        of_node = {name: value for name, value in os.environ.items() if not name.startswith(RAYS_OWN)}
        return of_node | self._wanted.env


def _say(line: str) -> None:
    """Into the actor's log, where Ray shows it."""
    print(line, flush=True)
