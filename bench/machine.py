"""What a measurement was made on, and what else ran there meanwhile."""

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


def facts() -> dict[str, str | int]:
    return {
        "commit": commit(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def commit() -> str:
    """With a `+` where the files are not those of the commit."""
    try:
        short = _git("rev-parse", "--short=10", "HEAD")
        return short + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    named = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return next(named, platform.machine()).partition(":")[2].strip() or platform.machine()


def cpu_s(pid: int) -> float:
    """What a process has used up to now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Meter:
    """CPU from now on: of our processes, and of all others on this machine, in cores."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = (os.getpid(), *pids)
        self._began = perf_counter()
        self._busy, self._used = self._all_busy_s(), self._all_used_s()

    def stop(self) -> tuple[list[float], float]:
        """Cores used by this process and each of the others, in their order; and by strangers."""
        lasted = perf_counter() - self._began
        used = [after - before for after, before in zip(self._all_used_s(), self._used, strict=True)]
        strangers = self._all_busy_s() - self._busy - sum(used)
        return [round(each / lasted, 2) for each in used], round(max(0.0, strangers) / lasted, 2)

    def _all_used_s(self) -> list[float]:
        return [cpu_s(pid) for pid in self._pids]

    def _all_busy_s(self) -> float:
        user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
        return (user + nice + system + irq + soft) / TICKS
