"""python -m deploy.grafana.draw --prometheus http://localhost:9091 --minutes 30 --out /tmp/dashboards"""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from deploy.grafana.draw import draw, span_of

SCRAPED_EVERY_S = 5.0


def main() -> None:
    text = "Draw the dashboards from what a Prometheus has, where no Grafana is at hand."
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.draw", description=text)
    parser.add_argument("--prometheus", default="http://localhost:9091", metavar="URL")
    parser.add_argument("--minutes", type=float, default=60, help="how far back (default: 60)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    now = datetime.now(UTC)
    end = now.timestamp()
    caption = f"Drawn from {args.prometheus} at {now:%Y-%m-%d %H:%M} UTC by python -m deploy.grafana.draw"
    draw(args.prometheus, span_of(end - args.minutes * 60, end, SCRAPED_EVERY_S), args.out, caption)


if __name__ == "__main__":
    main()
