"""Where the CPU of a request goes, and that of a token of a paced stream: by layer, all policies on.

    python -m bench layers [--seconds 8] [--streams 300] [--tokens 200]

The gateway looks at itself every two milliseconds of its CPU (`bench/sampled.py`); each look counts for the layer that
the innermost file of ours belongs to, or the server's. What the kernel does for a read or a write counts for who asked
for it; the waiting for both, and what wakes whom, for the event loop. Looking costs something: believe the shares.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.cost import measures
from bench.cost.cores import of_this_machine
from bench.cost.engine import engine
from bench.cost.gateway import ALL, REPLICAS
from bench.cost.lengths import FULL, Lengths
from bench.cost.measures import Bench, Figures
from bench.cost.standing import Standing, Start, started
from bench.figures import Row, table

LAYERS: Mapping[str, tuple[str, ...]] = {
    "server": (
        *("uvicorn/", "app/gateway/protocol.py", "app/gateway/cycle.py", "app/gateway/turns.py"),
        *("app/gateway/lifeline.py", "app/gateway/bell.py"),
    ),
    "edge": ("app/gateway/edge.py", "app/gateway/auth.py", "app/gateway/answers.py", "app/tenants/"),
    "parse": ("app/gateway/intake.py", "app/wire/parsing.py", "app/wire/edits.py", "app/wire/headers.py"),
    "limits": (
        *("app/gateway/pipeline.py", "app/wire/limits.py", "app/reliability/quota.py", "app/reliability/account.py"),
        *("app/reliability/allowance.py", "app/reliability/token_bucket.py", "app/reliability/estimates.py"),
        "app/reliability/ledger.py",
    ),
    "queue": (
        *("app/gateway/admission.py", "app/gateway/ticket.py", "app/gateway/line.py", "app/reliability/lane.py"),
        *("app/reliability/fair_queue.py", "app/reliability/service_rate.py"),
    ),
    "routing": ("app/cluster/", "app/gateway/routing/", "app/reliability/circuit.py", "app/reliability/limit.py"),
    "upstream": ("app/engines/",),
    "relay": (
        *("app/gateway/dispatch.py", "app/gateway/passage.py", "app/gateway/relay.py", "app/gateway/hedge.py"),
        *(
            "app/wire/answers.py",
            "app/wire/sse.py",
            "app/wire/transcript.py",
            "app/reliability/hedge.py",
            "app/reliability/retry.py",
        ),
    ),
    "telemetry": ("app/telemetry/", "app/trace.py", "opentelemetry/"),
}
LOOP = "event loop"
"""And whatever is in no layer."""

SHORTEST_S = 0.3


def layer_of(place: str) -> str:
    """Of files from the outermost to the innermost."""
    for file in reversed(place.split(" > ")):
        for layer, parts in LAYERS.items():
            if any(part in file for part in parts):
                return layer
    return LOOP


def shares(looks: Mapping[str, int]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for place, count in looks.items():
        counts[layer_of(place)] += count
    return {layer: counts[layer] / max(1, counts.total()) for layer in (*LAYERS, LOOP)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench layers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8, help="of requests")
    parser.add_argument("--streams", type=int, default=300, help="at once, with a token each 50 ms")
    parser.add_argument("--tokens", type=int, default=FULL.paced_tokens, help="of each stream")
    args = parser.parse_args(argv)
    lengths = replace(FULL, window_s=args.seconds, streams=args.streams, paced_tokens=args.tokens)
    requests, of_requests = looked_at(lengths, "requests")
    streams, of_streams = looked_at(lengths, "streams")
    us, us_token = requests["us_per_request"], streams["paced_us_per_token"]
    rows: list[Row] = [
        {
            "layer": layer,
            "µs of a request": of_requests[layer] * us,
            "%": f"{100 * of_requests[layer]:.0f}",
            "µs of a paced token": of_streams[layer] * us_token,
            " %": f"{100 * of_streams[layer]:.0f}",
        }
        for layer in of_requests
    ]
    rows.append({"layer": "all", "µs of a request": us, "%": "100", "µs of a paced token": us_token, " %": "100"})
    print(table(rows))
    return 0


def looked_at(lengths: Lengths, what: str) -> tuple[Figures, dict[str, float]]:
    """What it cost, and the shares of the layers."""
    cores = of_this_machine()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gllm-bench-")))
        looks = folder / "looks"
        bench = Bench(stack.enter_context(engine(REPLICAS, cores.engine)), cores, lengths)
        start = _sampled(ALL.start(bench.engine), looks)
        with started("gllm", start, cores.gateway, folder / "gllm", cores.load) as standing:
            figures = _measured(bench, standing, what)
        return figures, shares(json.loads(looks.read_text()))


def _sampled(start: Start, looks: Path) -> Start:
    *python, _, _, serve, quiet = start.command
    return replace(start, command=[*python, "-m", "bench.sampled", str(looks), serve, quiet])


def _measured(bench: Bench, standing: Standing, what: str) -> Figures:
    measure = measures.closed if what == "requests" else measures.paced
    with standing.awake():
        measure(replace(bench, lengths=replace(bench.lengths, window_s=SHORTEST_S)), standing)  # warm
        assert standing.process is not None
        standing.process.send_signal(signal.SIGUSR2)
        time.sleep(SHORTEST_S)
        return measure(bench, standing)


if __name__ == "__main__":
    sys.exit(main())
