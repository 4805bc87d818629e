"""Writes dashboards/*.json anew, from `deploy.grafana.boards`:

python -m deploy.grafana
"""

import json
from pathlib import Path

from deploy.grafana.boards import BOARDS
from deploy.grafana.panel import board_json

PLACE = "deploy/grafana/dashboards"


def pages() -> dict[str, str]:
    """By file name."""
    return {f"{each.uid}.json": json.dumps(board_json(each, BOARDS), indent=1) + "\n" for each in BOARDS}


def write(checkout: Path) -> None:
    for name, page in pages().items():
        (checkout / PLACE / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write(Path.cwd())
