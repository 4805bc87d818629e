"""Draws docs/img/*.svg anew: the dashboards, as an operator sees them in a few minutes in which everything happens.

python -m tests.deploy.pictures
"""

import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from deploy.grafana.draw import draw, span_of
from deploy.grafana.draw.frame import Mark
from tests.support.minute import live_through
from tests.support.processes import ROOT
from tests.support.prometheus import EVERY_S, NOT_TESTED, executable
from tests.support.stack import stack

PLACE = ROOT / "docs" / "img"
NAMES = ("worker-0", "worker-1")
BEFORE_S = 5


def main() -> int:
    if executable() is None:
        print(NOT_TESTED, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, stack(Path(folder), NAMES) as running:
        minute = live_through(running, pause_s=2)
        marks = [Mark(at, said) for said, at in minute.marks.items()]
        span = span_of(minute.began - BEFORE_S, minute.ended, EVERY_S)
        began = datetime.fromtimestamp(minute.began, UTC)
        caption = (
            f"Drawn by make pictures from what a real Prometheus had seen on {began:%Y-%m-%d at %H:%M} UTC: a gateway "
            f"and two Transformers engines with the demo model, on one machine without GPUs; commit {_commit()}"
        )
        draw(running.prometheus.url, span, PLACE, caption, marks)
    return 0


def _commit() -> str:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return said.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
