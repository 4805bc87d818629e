"""The dashboards as pictures, where no Grafana is at hand: drawn from what a Prometheus has."""

from collections.abc import Sequence
from pathlib import Path

from deploy.grafana.boards import BOARDS
from deploy.grafana.draw.answers import Asker, Span
from deploy.grafana.draw.frame import Mark
from deploy.grafana.draw.picture import picture

POINTS = 150


def draw(url: str, span: Span, folder: Path, caption: str, marks: Sequence[Mark] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with Asker(url, span) as asker:
        for board in BOARDS:
            page = picture(board, asker.board(board), span, marks, caption)
            (folder / f"{board.uid}.svg").write_text(page, encoding="utf-8")


def span_of(start: float, end: float, scraped_every_s: float) -> Span:
    """With the step of a graph of this width, and the interval of rates that Grafana would choose for it."""
    step_s = max(scraped_every_s, float(round((end - start) / POINTS)))
    return Span(start, end, step_s, max(4 * scraped_every_s, step_s + scraped_every_s))
