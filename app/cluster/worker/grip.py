"""What a worker holds from its start to its end: its GPUs, and its name, against every other worker on this machine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from pathlib import Path

from app.cluster.gpus.inventory import Gpu, Inventory, UnknownGpu, pinned
from app.cluster.gpus.lease import Hold, Lease, Taken, taken
from app.cluster.gpus.orphans import Immortal, end_orphans
from app.cluster.gpus.proof import Proof


class NoGrip(Exception):
    """Somebody else has it, or it is not there. The text is a sentence for the person who starts the worker."""


class Grip:
    def __init__(self, inventory: Inventory, gpus: tuple[Gpu, ...] | None, lease: Lease) -> None:
        """`gpus`: `None` where nobody has said which; then an engine may be on any."""
        self._inventory = inventory
        self._gpus = gpus
        self._lease = lease

    @property
    def shown(self) -> tuple[str, ...]:
        return tuple(gpu.visible_as for gpu in self._gpus or ())

    @property
    def env(self) -> Mapping[str, str]:
        """For the engine: which GPUs it is to see, and whose it is."""
        return {**self._lease.marker, **({} if self._gpus is None else pinned(self._gpus))}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """For its keeper."""
        return self._lease.descriptors

    async def clear(self, told: Callable[[str], None]) -> None:
        """Of whatever a killed predecessor, or a killed keeper, has left: nothing of ours runs now."""
        with _in_sentences():
            for orphan in await end_orphans(self._lease):
                told(f"Ended process {orphan.pid} ({orphan.command}), which an earlier engine had left.")

    def proof(self) -> Proof:
        return Proof(self._inventory, self._inventory.gpus if self._gpus is None else self._gpus, self._lease)


@asynccontextmanager
async def gripped(
    names: tuple[str, ...] | None, also: tuple[Hold, ...], told: Callable[[str], None]
) -> AsyncIterator[Grip]:
    """Whatever a killed predecessor has left on them is ended first."""
    with _in_sentences():
        inventory = await asyncio.to_thread(Inventory.here)
        gpus = None if names is None else inventory.find_all(names)
        lease = await taken((*also, *map(Hold.on_gpu, gpus or ())))
    with lease:
        grip = Grip(inventory, gpus, lease)
        await grip.clear(told)
        yield grip


def name_of(worker: str, state_dir: Path) -> Hold:
    """Two workers must not write into one log."""
    folder = sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]
    return Hold(f"worker:{worker}@{folder}", f"The name {worker}")


@contextmanager
def _in_sentences() -> Iterator[None]:
    try:
        yield
    except (UnknownGpu, Taken, Immortal) as error:
        raise NoGrip(str(error)) from error
