"""How many of Python's instructions (bytecodes) and calls a request takes: the same on every machine, however busy.

    python -m bench bytecodes                         # with all policies, with none, and with each alone
    python -m bench bytecodes --of all --functions 40 # where they are
    python -m bench bytecodes --of all --stream       # of a token of a stream instead

What C does for them is not in it: parsing JSON and HTTP, reading and writing. Of two ways to do the same in Python it
says which is shorter, and it says so without noise.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cost.cores import of_this_machine
from bench.cost.engine import Engine, engine
from bench.cost.gateway import POLICIES, REPLICAS, Alone
from bench.cost.load import Load, fire
from bench.cost.measures import WHOLE_TOKENS
from bench.cost.standing import Standing, Start, started
from bench.figures import Row, table

REQUESTS = 100
STREAMS = 10
SHORT, LONG = 20, 220
"""Tokens of each. By what longer ones take more, a token is known without a stream's begin and end."""
INTERVAL_US = 20_000
"""Between two tokens: counting makes Python slow, and none is to wait for the one before."""
SETTLED_S = 0.3
RARELY_S = "600"
"""Looks at engines are of no request."""


@dataclass(frozen=True)
class Count:
    bytecodes: float
    calls: float

    def without(self, other: "Count") -> "Count":
        return Count(self.bytecodes - other.bytecodes, self.calls - other.calls)

    def part(self, of: int) -> "Count":
        return Count(self.bytecodes / of, self.calls / of)


Counts = Mapping[str, Count]
"""By function."""


def total(counts: Counts) -> Count:
    return Count(sum(each.bytecodes for each in counts.values()), sum(each.calls for each in counts.values()))


def of_a_request(policy: Alone, requests: int = REQUESTS) -> Counts:
    found = _counted(policy, Load(each=requests))
    return {name: count.part(requests) for name, count in found.items()}


def of_a_token(policy: Alone) -> Counts:
    loads = (Load(connections=STREAMS, each=1, tokens=tokens, interval_us=INTERVAL_US) for tokens in (SHORT, LONG))
    short, long = (_counted(policy, load) for load in loads)
    none = Count(0, 0)
    return {name: count.without(short.get(name, none)).part(STREAMS * (LONG - SHORT)) for name, count in long.items()}


def _counted(policy: Alone, load: Load) -> Counts:
    cores = of_this_machine()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gllm-bench-")))
        behind = stack.enter_context(engine(REPLICAS, cores.engine))
        file = folder / "counts"
        start = _counting(policy.setup.start(behind), file)
        standing = stack.enter_context(started("gllm", start, cores.gateway, folder / "gllm", cores.load))
        with standing.awake():
            _ask(standing, Load(each=REQUESTS), cores.load, behind)  # warm
            _signal(standing)
            _ask(standing, load, cores.load, behind)
            _signal(standing)
        return {name: Count(bytecodes, calls) for name, (calls, bytecodes) in json.loads(file.read_text()).items()}


def _counting(start: Start, file: Path) -> Start:
    *python, _, _, serve, quiet = start.command
    command = [*python, "-m", "bench.counted", str(file), serve, quiet]
    return replace(start, command=command, environment={**start.environment, "PROBE_INTERVAL": RARELY_S})


def _ask(standing: Standing, load: Load, core: int, behind: Engine) -> None:
    behind.pace(load.interval_us)
    found = fire(load, standing.port, standing.requests(load.tokens or WHOLE_TOKENS, stream=load.tokens > 0), core)
    if found.failed:
        raise RuntimeError(f"{found.failed} requests failed: {found.first_wrong or found.first_status}")


def _signal(standing: Standing) -> None:
    assert standing.process is not None
    standing.process.send_signal(signal.SIGUSR2)
    time.sleep(SETTLED_S)


def of_policies(found: Mapping[str, Count]) -> list[Row]:
    """What each costs: what it takes more than the same without it."""
    rows: list[Row] = []
    for policy in POLICIES:
        count = found.get(policy.name)
        without = found.get(policy.without)
        if count is not None:
            more = None if without is None else count.without(without)
            rows.append(
                {
                    "": policy.name,
                    "bytecodes": f"{count.bytecodes:,.0f}",
                    "calls": f"{count.calls:.0f}",
                    "costs": None if more is None else f"{more.bytecodes:,.0f}",
                    "calls more": None if more is None else f"{more.calls:.0f}",
                    "beside": policy.without or None,
                }
            )
    return rows


def of_functions(counts: Counts, most: int) -> list[Row]:
    dearest = sorted(counts.items(), key=lambda each: each[1].bytecodes, reverse=True)[:most]
    return [
        {"bytecodes": f"{count.bytecodes:.0f}", "calls": f"{count.calls:.1f}", "function": name}
        for name, count in dearest
    ]


def main(argv: Sequence[str] | None = None) -> int:
    names = [policy.name for policy in POLICIES]
    parser = argparse.ArgumentParser(
        prog="python -m bench bytecodes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--of", nargs="+", metavar="POLICY", choices=names, default=names, help=", ".join(names))
    parser.add_argument("--functions", type=int, default=0, metavar="COUNT", help="show the dearest")
    parser.add_argument("--stream", action="store_true", help="a token of a stream, instead of a request")
    args = parser.parse_args(argv)
    found: dict[str, Count] = {}
    for policy in POLICIES:
        if policy.name in args.of:
            counts = (of_a_token if args.stream else of_a_request)(policy)
            found[policy.name] = total(counts)
            if args.functions:
                print(f"{policy.name}\n\n{table(of_functions(counts, args.functions))}\n")
    print(table(of_policies(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
