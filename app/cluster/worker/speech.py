"""What an engine's words tell about how far it has loaded."""

import re

_PERCENT = re.compile(r"\b(?:[Ll]oading\b[^:|]*|Fetching \d+ files|Downloading shards): +(\d{1,3})%")
"""vLLM, and the libraries that it and others load with."""

_STEP = re.compile(r"engine: (importing|loading model|loading weights|warming up|ready)\b")
"""Our own engine (`app.engines.transformers`)."""
_STEPS = ("importing", "loading model", "loading weights", "warming up", "ready")


def part_of(line: str) -> float | None:
    """From 0 to 1, where this line tells."""
    if found := _PERCENT.search(line):
        return min(int(found[1]), 100) / 100
    if found := _STEP.match(line):
        return _STEPS.index(found[1]) / (len(_STEPS) - 1)
    return None
