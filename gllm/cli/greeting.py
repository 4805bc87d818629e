"""What a person is told first: where the gateway is, and how to talk to it."""

import json
import shlex
from collections.abc import Sequence

from app.cluster.launchers.plan import url_of
from app.version import VERSION


def near(host: str, port: int) -> str:
    """Where a person on this machine reaches it."""
    return url_of({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)


def greeting(url: str, models: Sequence[str], seconds: float, *, keyed: bool) -> str:
    question = {"role": "user", "content": "What is continuous batching?"}
    body = shlex.quote(json.dumps({"model": models[0], "stream": True, "messages": [question]}))
    key = " -H 'Authorization: Bearer KEY'" if keyed else ""
    return (
        f"\ngllm {VERSION} serves {', '.join(models)} at {url} (ready after {seconds:.1f} s, docs at {url}/docs)\n\n"
        f"  curl -N {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {body}\n\n"
        "Ctrl+C stops it."
    )


def greeting_without_a_model(url: str, workers: int) -> str:
    who = {0: "no workers yet", 1: "1 worker"}.get(workers, f"{workers} workers")
    first = "" if workers else f"  gllm worker --gateway {url} ...    on a machine with GPUs\n"
    return (
        f"\ngllm {VERSION} is at {url} with {who} and no model:\n\n"
        f"{first}  gllm load MODEL --url {url}\n\n"
        "Ctrl+C stops it."
    )
