"""`python -m bench`: which measurements there are, and running one.

python -m bench http_stack --slices 6
python -m bench engine_batching
"""

import runpy
import sys

MEASUREMENTS = {
    "cost": "CPU, latency and memory of gllm with all policies on, of each alone, at scale, and of its peers",
    "guard": "whether the hot path got dearer: its CPU beside a plain proxy's, in half a minute, for CI",
    "layers": "where the CPU of a request and of a token goes, by layer",
    "bytecodes": "how many of Python's instructions a request and a token take, by policy and function",
    "several": "several gateway processes on one port: what each further one brings",
    "http_stack": "what each layer of the HTTP stack costs the gateway, per request and per event",
    "engine_batching": "what continuous batching gives the Transformers engine, in tokens a second",
    "through": "what clients get of a real engine through the gateway, beside asking the engine itself",
    "tracing": "what traces cost the gateway and the Transformers engine",
    "journal": "what it costs the gateway to remember the last calls",
    "overload": "goodput over offered load, and how fast the excess is refused",
    "fairness": "a light tenant beside one that offers twenty times its share",
    "twins": "a hundred simultaneous requests with one idempotency key",
    "hangups": "ten thousand requests of which a fifth hang up: what is left, and what is charged",
    "routing": "policies of routing on simulated engines: evenness, stale information, what is found cached",
}


def main() -> None:
    asked = sys.argv[1:2]
    if not asked or asked[0] not in MEASUREMENTS:
        print("python -m bench NAME [--help], where NAME is one of\n")
        for name, what in MEASUREMENTS.items():
            print(f"  {name:16} {what}")
        raise SystemExit(0 if asked in ([], ["--help"]) else 2)
    sys.argv = sys.argv[1:]
    runpy.run_module(f"bench.{asked[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
