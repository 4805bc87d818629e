"""The scenarios of `bench/` in their quick form, so that they never rot."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, clean_environment

pytestmark = pytest.mark.alone
SCENARIOS = ("overload", "fairness", "twins", "hangups", "routing")


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "bench", name, "--quick", *options]
    return subprocess.run(argv, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_keeps_its_promises(name: str, tmp_path: Path) -> None:
    done = run(name, "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("verdict: kept\n")
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert {"scenario", "commit", "cpu", "cores", "seed", "settings", "tables", "promises"} <= found.keys()
