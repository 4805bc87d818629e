"""Stands in for the module of `nvidia-ml-py`: GPUs as a file says, and who is on them as files beside it say.

Put this folder on PYTHONPATH; FAKE_NVML names the folder that `tests.support.nvml.FakeGpus` writes.
"""

import json
import os
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
    found = [json.loads(each.read_text()) for each in _folder().glob("on-*.json")]
    return [
        each for each in found if each["uuid"] == uuid and (each["lingers"] or Path(f"/proc/{each['pid']}").exists())
    ]


def nvmlInit() -> None:  # noqa: N802
    _folder()


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return len([gpu for gpu in _gpus() if not gpu["uuid"].startswith("MIG-")])


def nvmlDeviceGetHandleByIndex(index: int) -> str:  # noqa: N802
    if not 0 <= index < nvmlDeviceGetCount():
        raise NVMLError_NotFound
    return _gpus()[index]["uuid"]


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:  # noqa: N802
    if uuid not in [gpu["uuid"] for gpu in _gpus()]:
        raise NVMLError_NotFound
    return uuid


def nvmlDeviceGetUUID(handle: str) -> str:  # noqa: N802
    return handle


def nvmlDeviceGetMemoryInfo(handle: str) -> Memory:  # noqa: N802
    gpu = next(each for each in _gpus() if each["uuid"] == handle)
    if gpu.get("silent"):
        raise NVMLError_NotSupported
    used = gpu["used"] + sum(guest["bytes"] for guest in _guests(handle))
    return Memory(gpu["total"], gpu["total"] - used, used)


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[Process]:  # noqa: N802
    if handle.startswith("MIG-"):
        raise NVMLError_NotSupported
    return [Process(each["pid"], each["bytes"]) for each in _guests(handle) if Path(f"/proc/{each['pid']}").exists()]


def nvmlDeviceGetGraphicsRunningProcesses(handle: str) -> list[Process]:  # noqa: N802
    return []
