"""How long everything is measured."""

import resource
from dataclasses import dataclass

SPARE_FILES = 300


@dataclass(frozen=True)
class Lengths:
    repeats: int = 3
    window_s: float = 2.0
    """Of load, for each figure of each repeat."""
    turn_s: float = 0.25
    """The window is cut into these where one is compared with another: a machine that is slow for some seconds is so
    for all of them."""
    concurrency: int = 64
    streams: int = 1_000
    paced_tokens: int = 200
    interval_us: int = 50_000
    ramp_s: float = 2.5
    idle: int = 10_000
    idle_of_peers: int = 1_000
    waiting: tuple[int, ...] = (0, 100, 1_000, 9_000)
    replicas: tuple[int, ...] = (1, 4, 16, 64)
    tenants: tuple[int, ...] = (1, 100, 10_000)

    @property
    def turns(self) -> int:
        """For as much load in all."""
        return max(1, round(self.repeats * self.window_s / self.turn_s))


FULL = Lengths()
QUICK = Lengths(
    repeats=1,
    window_s=0.5,
    streams=100,
    paced_tokens=10,
    ramp_s=0.3,
    idle=200,
    idle_of_peers=100,
    waiting=(0, 200),
    replicas=(1, 8),
    tenants=(1, 200),
)


def raise_open_files() -> int:
    """To the most that this machine lets us have; what we start has it from us."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def idle_streams(wanted: int, open_files: int) -> int:
    """Each takes a gateway two sockets."""
    return min(wanted, (open_files - SPARE_FILES) // 2)
