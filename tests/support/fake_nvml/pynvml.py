"""Stands in for the module of `nvidia-ml-py`: GPUs as a file says, and who is on them as files beside it say.

Put this folder on PYTHONPATH; FAKE_NVML names the folder that `tests.support.nvml.FakeGpus` writes.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801 - the binding's own name
    def __str__(self) -> str:
        return "NVML Shared Library Not Found"


class NVMLError_NotFound(NVMLError):  # noqa: N801 - the binding's own name
    def __str__(self) -> str:
        return "Not Found"


class NVMLError_GpuIsLost(NVMLError):  # noqa: N801 - the binding's own name
    def __str__(self) -> str:
        return "GPU is lost"


class NVMLError_NotSupported(NVMLError):  # noqa: N801 - the binding's own name
    def __str__(self) -> str:
        return "Not Supported"


@dataclass
class Memory:
    total: int
    free: int
    used: int


@dataclass
class Process:
    pid: int
    usedGpuMemory: int | None  # noqa: N815


def _folder() -> Path:
    folder = os.environ.get("FAKE_NVML")
    if folder is None or not Path(folder, "gpus.json").exists():
        raise NVMLError_LibraryNotFound
    return Path(folder)


def _gpus() -> list[dict]:
    return json.loads((_folder() / "gpus.json").read_text())


def _guests(uuid: str) -> list[dict]:
    found = {each: json.loads(each.read_text()) for each in _folder().glob("on-*.json")}
    return [guest for file, guest in found.items() if guest["uuid"] == uuid and _is_there(file, guest)]


def _is_there(file: Path, guest: dict) -> bool:
    """Dead guests may stay, and be listed, for so long as they are said to: so it is while a driver cleans up."""
    if guest["lingers"] or Path(f"/proc/{guest['pid']}").exists():
        return True
    seen_dead = file.with_suffix(".dead")
    if not seen_dead.exists():
        seen_dead.touch()
    return time.time() - seen_dead.stat().st_mtime < guest["lingers_s"]


def nvmlInit() -> None:  # noqa: N802
    _folder()


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return len([gpu for gpu in _gpus() if not gpu["uuid"].startswith("MIG-")])


def nvmlDeviceGetHandleByIndex(index: int) -> str:  # noqa: N802
    if not 0 <= index < nvmlDeviceGetCount():
        raise NVMLError_NotFound
    if _gpus()[index].get("lost"):
        raise NVMLError_GpuIsLost
    return _gpus()[index]["uuid"]


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:  # noqa: N802
    if uuid not in [gpu["uuid"] for gpu in _gpus()]:
        raise NVMLError_NotFound
    return uuid


def nvmlDeviceGetUUID(handle: str) -> str:  # noqa: N802
    return handle


def nvmlDeviceGetName(handle: str) -> str:  # noqa: N802
    return "Fake H100"


def nvmlDeviceGetMemoryInfo(handle: str) -> Memory:  # noqa: N802
    gpu = next(each for each in _gpus() if each["uuid"] == handle)
    time.sleep(gpu.get("hangs_s", 0))
    if gpu.get("silent"):
        raise NVMLError_NotSupported
    used = gpu["used"] + sum(guest["bytes"] for guest in _guests(handle))
    return Memory(gpu["total"], gpu["total"] - used, used)


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[Process]:  # noqa: N802
    if handle.startswith("MIG-"):
        raise NVMLError_NotSupported
    return [Process(each["pid"], each["bytes"]) for each in _guests(handle)]


def nvmlDeviceGetGraphicsRunningProcesses(handle: str) -> list[Process]:  # noqa: N802
    return []
