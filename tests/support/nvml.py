"""GPUs where there are none: the real code asks a fake NVML, whose answers lie in files that tests write."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAKE = Path(__file__).with_name("fake_nvml")
GIB = 2**30
TOTAL = 80 * GIB
IDLE = GIB // 2


class FakeGpus:
    def __init__(self, folder: Path, count: int = 2) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.uuids = [f"GPU-{index:08x}-aaaa-bbbb-cccc-{index:012x}" for index in range(count)]
        self.are([{"uuid": uuid, "total": TOTAL, "used": IDLE} for uuid in self.uuids])

    def are(self, gpus: list[dict[str, object]]) -> None:
        self._write("gpus.json", gpus)

    @property
    def env(self) -> dict[str, str]:
        """For processes that are to find these GPUs; PYTHONPATH goes before theirs."""
        return {"FAKE_NVML": str(self.folder), "PYTHONPATH": str(FAKE)}

    def occupy(self, gpu: int, pid: int, bytes_: int = 8 * GIB, *, lingers: bool = False) -> None:
        """Until the process ends; `lingers`: until it is told to vacate, as a driver that is slow to clean up."""
        said = {"uuid": self.uuids[gpu], "pid": pid, "bytes": bytes_, "lingers": lingers}
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
        """Whole or not at all: others read meanwhile."""
        fresh = self.folder / f".{name}"
        fresh.write_text(json.dumps(value))
        fresh.replace(self.folder / name)
