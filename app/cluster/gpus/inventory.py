"""The GPUs of this machine and what is on them, by the driver's own account (NVML)."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from app.cluster.gpus.driver import Driver, Silent

log = logging.getLogger("gllm")

ANY_PROCESS = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")


class UnknownGpu(Exception):
    """The text is a sentence for the operator."""


@dataclass(frozen=True)
class Gpu:
    uuid: str
    """Of the GPU, or of a MIG slice."""
    index: int | None
    """In the order of the PCI bus; `None` for a slice."""
    model: str = field(default="", compare=False)
    memory_bytes: int = field(default=0, compare=False)
    """All its memory. 0, and no model: nobody has told."""

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

    def __init__(self, gpus: tuple[Gpu, ...], driver: Driver | None = None, lacking: str = "") -> None:
        self.gpus = gpus
        self.lacking = lacking
        self._driver = driver

    @classmethod
    def here(cls) -> "Inventory":
        import pynvml

        driver = Driver(pynvml)
        try:
            gpus = driver.ask(_found)
        except Silent as error:
            return cls((), lacking=f"NVML cannot be asked here ({error}).")
        return cls(gpus, driver, "" if gpus else "NVML knows no GPU here.")

    def find(self, name: str) -> Gpu:
        """An index, a UUID or so much of its beginning as tells it from the others, or the UUID of a MIG slice."""
        if not name:
            raise UnknownGpu("A GPU is named by its index or its UUID, not by nothing.")
        if self._driver is None:
            return Gpu(str(int(name)), int(name)) if name.isdecimal() else Gpu(name, None)
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
        raise UnknownGpu(f"There is no GPU {name} here; there {_are([gpu.index for gpu in self.gpus])}.")

    def find_all(self, names: Iterable[str]) -> tuple[Gpu, ...]:
        gpus = tuple(self.find(name) for name in names)
        for gpu in gpus:
            if gpus.count(gpu) > 1:
                raise UnknownGpu(f"{gpu.shown} is named twice.")
        return gpus

    def memory(self, gpu: Gpu) -> Memory | None:
        """`None`: nobody tells."""
        if self._driver is None:
            return None
        try:
            return self._driver.ask(lambda nvml: _memory(nvml, gpu))
        except Silent as error:
            log.warning("%s does not tell what is on it: %s", gpu.shown, error)
            return None

    def _has(self, uuid: str) -> bool:
        if self._driver is None:
            return False
        try:
            self._driver.ask(lambda nvml: nvml.nvmlDeviceGetHandleByUUID(uuid))
        except Silent:
            return False
        return True


def pinned(gpus: tuple[Gpu, ...]) -> dict[str, str]:
    """The environment of an engine that is to see these GPUs and no other."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.visible_as for gpu in gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _found(nvml: Any) -> tuple[Gpu, ...]:
    nvml.nvmlInit()
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpus.append(_gpu(nvml, index))
        except nvml.NVMLError as error:  # one that is broken leaves the others usable
            log.warning("GPU %s is left out: %s", index, error)
    return tuple(gpus)


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid, model, total = _text(nvml.nvmlDeviceGetUUID(handle)), "", 0
    with suppress(nvml.NVMLError):  # good to know, but no reason to do without it
        model = _text(nvml.nvmlDeviceGetName(handle))
        total = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Gpu(uuid, index, model, total)


def _memory(nvml: Any, gpu: Gpu) -> Memory:
    handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    holders: dict[int, int] = {}
    for question in ANY_PROCESS:
        with suppress(nvml.NVMLError):  # a slice, or a driver that does not list processes
            holders |= {each.pid: int(each.usedGpuMemory or 0) for each in getattr(nvml, question)(handle)}
    return Memory(int(nvml.nvmlDeviceGetMemoryInfo(handle).used), holders)


def _text(value: str | bytes) -> str:
    """Older versions of the binding give bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _are(indexes: Sequence[int | None]) -> str:
    if len(indexes) < 2:
        return f"is only GPU {indexes[0]}" if indexes else "is none"
    if indexes == list(range(len(indexes))):
        return f"are 0 to {len(indexes) - 1}"
    return f"are {', '.join(map(str, indexes))}"
