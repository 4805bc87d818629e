"""Where a worker stands and its engines run: its GPUs, its ports, and the proof that a memory is free again."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from app.cluster.control import Order, Released
from app.cluster.launchers.plan import HOST, Build, Launch, Place, launch, url_of
from app.cluster.launchers.ports import Ports
from app.cluster.worker.grip import Grip, gripped, name_of
from app.cluster.worker.terms import Terms

OnProgress = Callable[[str, str], None]
"""A worker's name, and a line that its engine said, or that is said about it."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Post:
    """Where a worker stands."""

    name: str
    host: str = HOST
    """The address that its engine listens on."""
    public_host: str = ""
    """The name or address by which others reach it; empty: the same."""
    gpus: tuple[str, ...] | None = None
    """As in GPUS."""
    on_cpu: bool = False
    threads: int = 1
    exclusive: bool = False
    """Nobody else may stand under its name in the same state folder."""

    def log_in(self, state_dir: Path) -> Path:
        return state_dir / "logs" / f"{self.name}.log"


class Site:
    """From the start of a worker to its end; engines come and go on it."""

    def __init__(self, post: Post, terms: Terms, grip: Grip, ports: Ports, build: Build | None, tell: Tell) -> None:
        self._post = post
        self._terms = terms
        self._grip = grip
        self._ports = ports
        self._build = build
        self._tell = tell
        self._proof = grip.proof()
        self._port = self._next_port()

    @property
    def gpus(self) -> tuple[str, ...]:
        return self._grip.shown

    @property
    def descriptors(self) -> tuple[int, ...]:
        """For an engine's keeper: the lease holds for as long as it does."""
        return self._grip.descriptors

    def launch(self, order: Order) -> Launch:
        """How an engine is started for it, here and now. What is free of its GPUs before is to be free after it."""
        self._proof = self._grip.proof()
        self._port = self._port if self._ports.still_free(self._port) else self._next_port()
        post, terms = self._post, self._terms
        names = terms.names(order)
        place = Place(self._port, post.gpus, post.on_cpu, post.threads, post.host, names, terms.telemetry)
        planned = launch(post.name, terms.meant(order), place, self._build)
        return replace(planned, env={**planned.env, **self._grip.env})

    def url_of(self, launch: Launch) -> str:
        """For others."""
        return url_of(self._post.public_host or self._post.host, launch.port)

    async def clear(self) -> None:
        """Of what the last engine has left, as when its keeper was killed; `NoGrip` if it cannot be ended."""
        await self._grip.clear(self._tell)

    async def released(self, limit_s: float) -> Released:
        """When nothing of the last engine is left and its memory is back; `NotReleased` if that cannot be seen."""
        return await self._proof.released(limit_s=limit_s)

    def _next_port(self) -> int:
        before = len(self._ports.skipped)
        port = next(self._ports)
        for taken in self._ports.skipped[before:]:
            self._tell(f"Port {taken} is taken; trying the next.")
        return port


@asynccontextmanager
async def occupied(post: Post, terms: Terms, state_dir: Path, build: Build | None, tell: Tell) -> AsyncIterator[Site]:
    """`NoGrip` where somebody else stands there; `NoPort` where no port is free."""
    holds = (name_of(post.name, state_dir),) if post.exclusive else ()
    async with gripped(post.gpus, holds, tell) as grip:
        ports = Ports(post.host, terms.engine.port_start)
        try:
            yield Site(post, terms, grip, ports, build, tell)
        finally:
            ports.close()
