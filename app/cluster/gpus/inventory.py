"""The GPUs of this machine and what is on them, by the driver's own account (NVML)."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

log = logging.getLogger("gllm")

T = TypeVar("T")

ANY_PROCESS = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")


class UnknownGpu(Exception):
    """The text is a sentence for the operator."""


class Silent(Exception):
    """The driver does not tell."""


@dataclass(frozen=True)
class Gpu:
    uuid: str
    """Of the GPU, or of a MIG slice."""
    index: int | None
    """In the order of the PCI bus; `None` for a slice."""

    @property
    def shown(self) -> str:
        return f"GPU {self.uuid if self.index is None else self.index}"

    @property
    def visible_as(self) -> str:
        """For CUDA_VISIBLE_DEVICES: many versions of vLLM take numbers only."""
        return self.uuid if self.index is None else str(self.index)


@dataclass(frozen=True)
class Memory:
    """What is taken of one GPU, in bytes, and by whom."""

    used: int
    holders: Mapping[int, int]
    """By pid. Empty where the driver does not tell, as in a container."""


class Inventory:
    """`lacking` says why there are none, where there are none. Then GPUs are taken by the names that they are given."""

    def __init__(self, gpus: tuple[Gpu, ...], nvml: Any = None, lacking: str = "") -> None:
        self.gpus = gpus
        self.lacking = lacking
        self._nvml = nvml

    @classmethod
    def here(cls) -> "Inventory":
        import pynvml

        try:
            with _told(pynvml):
                pynvml.nvmlInit()
                uuids = [
                    _text(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
                    for index in range(pynvml.nvmlDeviceGetCount())
                ]
        except Silent as error:
            return cls((), lacking=f"NVML cannot be asked here ({error}).")
        gpus = tuple(Gpu(uuid, index) for index, uuid in enumerate(uuids))
        return cls(gpus, pynvml, "" if gpus else "NVML knows no GPU here.")

    def find(self, name: str) -> Gpu:
        """An index, a UUID or so much of its beginning as tells it from the others, or the UUID of a MIG slice."""
        if self._nvml is None:
            return Gpu(name, int(name) if name.isdecimal() else None)
        if name.isdecimal():
            found = [gpu for gpu in self.gpus if gpu.index == int(name)]
        elif name.startswith("MIG-"):
            found = [Gpu(name, None)] if self._has(name) else []
        else:
            found = [gpu for gpu in self.gpus if gpu.uuid.startswith(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownGpu(f"{name} is the beginning of {len(found)} GPUs' names.")
        raise UnknownGpu(f"There is no GPU {name} here; there {_are(len(self.gpus))}.")

    def find_all(self, names: Iterable[str]) -> tuple[Gpu, ...]:
        gpus = tuple(self.find(name) for name in names)
        for gpu in gpus:
            if gpus.count(gpu) > 1:
                raise UnknownGpu(f"{gpu.shown} is named twice.")
        return gpus

    def memory(self, gpu: Gpu) -> Memory | None:
        """`None`: nobody tells."""
        if self._nvml is None:
            return None
        try:
            return self._ask(self._memory_of, gpu)
        except Silent as error:
            log.warning("%s does not tell what is on it: %s", gpu.shown, error)
            return None

    def _memory_of(self, handle: Any) -> Memory:
        holders: dict[int, int] = {}
        for question in ANY_PROCESS:
            with suppress(self._nvml.NVMLError):  # a slice, or a driver that does not list processes
                holders |= {each.pid: int(each.usedGpuMemory or 0) for each in getattr(self._nvml, question)(handle)}
        return Memory(int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used), holders)

    def _has(self, uuid: str) -> bool:
        try:
            self._ask(lambda handle: handle, Gpu(uuid, None))
        except Silent:
            return False
        return True

    def _ask(self, question: Callable[[Any], T], gpu: Gpu) -> T:
        with _told(self._nvml):
            return question(self._nvml.nvmlDeviceGetHandleByUUID(gpu.uuid))


def pinned(gpus: tuple[Gpu, ...]) -> dict[str, str]:
    """The environment of an engine that is to see these GPUs and no other."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.visible_as for gpu in gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@contextmanager
def _told(nvml: Any) -> Iterator[None]:
    """Every error of NVML enters here."""
    try:
        yield
    except nvml.NVMLError as error:
        raise Silent(str(error)) from None


def _text(value: str | bytes) -> str:
    """Older versions of the binding give bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _are(count: int) -> str:
    if count == 1:
        return "is only GPU 0"
    return f"are 0 to {count - 1}" if count else "is none"
