"""GPUs where there are none: the real code asks a fake NVML, whose answers lie in files that tests write."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

FAKE = Path(__file__).with_name("fake_nvml")
GIB = 2**30
TOTAL = 80 * GIB
IDLE = GIB // 2


class FakeGpus:
    def __init__(self, folder: Path, count: int = 2) -> None:
        """Those in another folder are others: leases, which hold for a whole machine, do not see them as one."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.uuids = [f"GPU-{index:08x}-aaaa-bbbb-cccc-{crc32(bytes(folder)):012x}" for index in range(count)]
        self.are([{"uuid": uuid, "total": TOTAL, "used": IDLE} for uuid in self.uuids])

    def are(self, gpus: list[dict[str, object]]) -> None:
        self._write("gpus.json", gpus)

    @property
    def env(self) -> dict[str, str]:
        """For processes that are to find these GPUs; PYTHONPATH goes before theirs."""
        return {"FAKE_NVML": str(self.folder), "PYTHONPATH": str(FAKE)}

    def occupy(
        self, gpu: int, pid: int, bytes_: int = 8 * GIB, *, lingers: bool = False, lingers_s: float = 0.0
    ) -> None:
        """Until the process ends, or so long after it was first seen dead, as a driver that is slow to clean up;
        `lingers`: until it is told to vacate.
        """
        said = {"uuid": self.uuids[gpu], "pid": pid, "bytes": bytes_, "lingers": lingers, "lingers_s": lingers_s}
        self._write(f"on-{gpu}-{pid}.json", said)

    def vacate(self, gpu: int, pid: int) -> None:
        (self.folder / f"on-{gpu}-{pid}.json").unlink()

    @contextmanager
    def occupied(self, gpu: int, pid: int, bytes_: int = 8 * GIB) -> Iterator[None]:
        self.occupy(gpu, pid, bytes_, lingers=True)
        try:
            yield
        finally:
            self.vacate(gpu, pid)

    def _write(self, name: str, value: object) -> None:
        _write(self.folder / name, value)


def load_model(bytes_: int = 8 * GIB, *, lingers_s: float = 0.0) -> None:
    """Called in a fake engine: it takes that much of each GPU that it sees, for as long as it lives and `lingers_s`."""
    folder = Path(os.environ["FAKE_NVML"])
    uuids = [gpu["uuid"] for gpu in json.loads((folder / "gpus.json").read_text())]
    for seen in os.environ["CUDA_VISIBLE_DEVICES"].split(","):
        uuid = uuids[int(seen)] if seen.isdecimal() else seen
        said = {"uuid": uuid, "pid": os.getpid(), "bytes": bytes_, "lingers": False, "lingers_s": lingers_s}
        _write(folder / f"on-{uuids.index(uuid)}-{os.getpid()}.json", said)


def _write(file: Path, value: object) -> None:
    """Whole or not at all: others read meanwhile."""
    fresh = file.with_name(f".{file.name}")
    fresh.write_text(json.dumps(value))
    fresh.replace(file)
