"""Where the CPU goes: each look at the gateway counts for one layer."""

import pytest

from bench import layers
from bench.layers import LAYERS, LOOP, layer_of, shares
from bench.machine import ROOT

SERVER = "gllm/cli/serve.py > site-packages/uvicorn/protocols/http/httptools_impl.py"


@pytest.mark.parametrize(
    ("place", "layer"),
    [
        (SERVER, "server"),
        (f"{SERVER} > app/gateway/edge.py", "edge"),
        (f"{SERVER} > app/gateway/edge.py > /usr/lib/python3.11/random.py", "edge"),
        (f"{SERVER} > app/gateway/edge.py > app/gateway/pipeline.py > app/engines/http/connection.py", "upstream"),
        (f"{SERVER} > app/gateway/edge.py > app/telemetry/base.py > app/telemetry/metrics/calls.py", "telemetry"),
        ("gllm/cli/serve.py > site-packages/uvloop/__init__.py", LOOP),
    ],
)
def test_a_look_counts_for_the_innermost_layer(place: str, layer: str) -> None:
    assert layer_of(place) == layer


def test_all_shares_are_one() -> None:
    found = shares({SERVER: 1, f"{SERVER} > app/gateway/edge.py": 2, "elsewhere.py": 1})
    assert (found["server"], found["edge"], found[LOOP]) == (0.25, 0.5, 0.25)
    assert sum(found.values()) == 1
    assert list(found) == [*LAYERS, LOOP]


def test_what_layers_are_made_of_is_there() -> None:
    ours = [part for parts in LAYERS.values() for part in parts if part.startswith("app/")]
    assert [part for part in ours if not (ROOT / part).exists()] == []


@pytest.mark.alone
def test_a_short_run_finds_all_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert layers.main(["--seconds", "1", "--streams", "30", "--tokens", "20"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[1] for row in rows] == [*map(str, LAYERS), "event", "all"]
    assert all(float(row.split("|")[2]) > 0 for row in rows)
