"""What the journal costs: the gateway's CPU per request and per streamed event.

    python -m bench journal [--slices 20] [--beside CHECKOUT]

Gateways with and without one take turns in slices of a second before one engine of canned bytes; and the gateway of
another checkout, if one is named. What counts is the ratio to the first.
"""

import argparse
import asyncio
import statistics
from contextlib import ExitStack
from pathlib import Path

from bench.http_stack import Variant, measure
from bench.machine import ROOT, facts
from bench.ports import free_port
from bench.tracing import ratio, started

SETTINGS = {"OTEL_SDK_DISABLED": "true"}
GATEWAYS: dict[str, dict[str, str]] = {"no journal": {"JOURNAL_REQUESTS": "0"}, "journal": {}}


def gateways(stack: ExitStack, beside: Path | None) -> list[Variant]:
    engine = free_port()
    stack.enter_context(started(["bench.canned_engine", str(engine)], engine, {}))
    asked = [(name, ROOT, env) for name, env in GATEWAYS.items()]
    if beside is not None:
        asked = [("the other", beside, {"PYTHONPATH": str(beside)}), *asked]
    variants = []
    for name, folder, env in asked:
        port = free_port()
        words = ["bench.skeletons", "gllm", "own", "httptools", str(port), str(engine)]
        variants.append(Variant(name, port, stack.enter_context(started(words, port, {**SETTINGS, **env}, folder))))
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another gllm, to be compared with")
    args = parser.parse_args()
    print(", ".join(f"{name}: {value}" for name, value in facts().items()), "\n")
    with ExitStack() as stack:
        variants = gateways(stack, args.beside)
        asyncio.run(measure(variants, args.slices))
    first = variants[0]
    print("| gateway | CPU µs/request | ratio | CPU µs/event, paced | ratio |\n| --- | --- | --- | --- | --- |")
    for each in variants:
        requests, events = ratio(each.request_us, first.request_us), ratio(each.event_us, first.event_us)
        whole, event = statistics.median(each.request_us), statistics.median(each.event_us)
        print(f"| {each.name} | {whole:.0f} | {requests:.3f} | {event:.1f} | {events:.3f} |")


if __name__ == "__main__":
    main()
