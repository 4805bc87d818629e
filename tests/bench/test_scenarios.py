"""The scenarios of `bench/` in their quick form, so that they never rot."""

import json
import shutil
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


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server")
def test_several_processes_are_measured_and_none_fails() -> None:
    argv = [sys.executable, "-m", "bench", "several", "--repeats", "1", "--seconds", "0.3", "--limits"]
    done = subprocess.run(argv, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, one, two = done.stdout.splitlines()
    assert [[*map(float, line.split("|")[1::6])] for line in (one, two)] == [[1.0, 0.0], [2.0, 0.0]], done.stdout
