"""The load generator, and what it found."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.cost.build import built
from bench.cost.cores import pinned

OVER_S = 60.0
"""Beyond the time that it gives itself, it hangs."""


class Spread(msgspec.Struct, frozen=True):
    """Of times, in microseconds."""

    count: int
    p50: float
    p90: float
    p99: float
    p999: float
    most: float


class Found(msgspec.Struct, frozen=True):
    seconds: float
    cpu_s: float
    """The load generator's own."""
    answered: int
    refused: int
    broken: int
    """Cut off, or not what was asked for."""
    unfinished: int
    reconnected: int
    tokens: int
    reads: int
    held: int
    first_status: int
    first_wrong: str
    latency_us: Spread
    first_token_us: Spread
    gap_error_us: Spread
    late_us: Spread
    """How late the generator was itself, or had to wait for a connection: open loop only."""

    @property
    def failed(self) -> int:
        return self.refused + self.broken + self.unfinished


@dataclass(frozen=True)
class Load:
    """`seconds` of requests, or `each` on every connection. With a `rate` it is an open loop."""

    connections: int = 1
    seconds: float = 3
    each: int = 0
    rate: float = 0
    seed: int = 7
    tokens: int = 0
    interval_us: int = 0
    ramp: float = 0
    patience: float = 10

    def options(self) -> list[str]:
        given = {name: value for name, value in vars(self).items() if value}
        return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def write_requests(path: Path, requests: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(b"%d\n%b" % (len(request), request) for request in requests))
    return path


def fire(load: Load, port: int, requests: Path, core: int) -> Found:
    command = _command(load, port, requests, core)
    done = subprocess.run(command, capture_output=True, timeout=load.seconds + load.patience + OVER_S, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.decode(errors='replace')}")
    return msgspec.json.decode(done.stdout, type=Found)


@contextmanager
def held(load: Load, port: int, requests: Path, core: int) -> Iterator[int]:
    """How many of the connections have a stream that has begun. They stay as long as the block."""
    command = [*_command(load, port, requests, core), "--hold"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline() or 0)
    finally:
        process.communicate(timeout=OVER_S)


def _command(load: Load, port: int, requests: Path, core: int) -> list[str]:
    return pinned(core, str(built("load")), str(port), str(requests), *load.options())
