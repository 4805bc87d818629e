"""What gllm costs with all policies on: CPU, latency, memory; each policy alone; how it grows; and its peers.

    python -m bench cost                     # gllm alone
    python -m bench cost --peers             # beside nginx, vllm-router, sglang-router, FastAPI + httpx, LiteLLM
    python -m bench cost --install           # those of them that are Python packages, into bench/.cache/peers
    python -m bench cost --write FILE        # such a run into docs/performance.md, and its file beside it

The gateway has a core for itself; load generator and engine are on another. CPU is that of its whole process tree, from
/proc. Every run is kept in bench/results/; the machine should do nothing else meanwhile, and the report says how far it
did.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from bench import machine
from bench.cost import pages
from bench.cost.cores import of_this_machine
from bench.cost.engine import engine
from bench.cost.lengths import FULL, QUICK, Lengths, raise_open_files
from bench.cost.measures import Bench
from bench.cost.peers import PEERS, Peer, present
from bench.cost.results import Results, load
from bench.cost.run import Run

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("gateways", "policies", "scale")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="*", metavar="NAME", help="beside these; without names, all that are there")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seconds", type=float, help="of load, for each figure")
    parser.add_argument("--quick", action="store_true", help="that everything works; its figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results there")
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--write", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.install:
        return install()
    if args.write:
        pages.write(load(args.write))
        load(args.write).save(RESULTS / "performance.json")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is frozen is ended with its block
    lengths = QUICK if args.quick else FULL
    lengths = replace(lengths, repeats=args.repeats or lengths.repeats, window_s=args.seconds or lengths.window_s)
    chosen = [] if args.peers is None else [peer for peer, _ in present() if not args.peers or peer.name in args.peers]
    results = measured(lengths, chosen, args.parts, sys.argv[1:] if argv is None else argv)
    path = args.json or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    results.save(path)
    print(f"\n{pages.text(results)}\n\nKept in {path}")
    return 1 if results.failed() else 0


def measured(lengths: Lengths, peers: Sequence[Peer], parts: Sequence[str], words: Sequence[str] = ()) -> Results:
    began = time.monotonic()
    cores, open_files = of_this_machine(), raise_open_files()
    results = Results(
        command=" ".join(["python -m bench cost", *words]),
        facts={"date": f"{datetime.now(UTC):%Y-%m-%d}", **machine.facts()},
        lengths=asdict(lengths),
        versions={peer.name: peer.version() or "?" for peer in peers},
        abouts={peer.name: peer.about for peer in peers},
    )
    with (
        tempfile.TemporaryDirectory(prefix="gllm-bench-") as folder,
        engine(max(lengths.replicas), cores.engine) as served,
    ):
        run = Run(Bench(served, cores, lengths), Path(folder), results, open_files, say)
        if "gateways" in parts:
            run.gateways(peers)
        if "policies" in parts:
            run.policies()
        if "scale" in parts:
            run.scale()
    results.took_s = round(time.monotonic() - began, 1)
    return results


def install() -> int:
    for peer in PEERS:
        peer.install()
        print(f"{peer.name}: {peer.version() or 'not there'}")
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
