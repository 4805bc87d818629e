"""What several workers are doing while somebody waits: a bar for each on a terminal, plain lines elsewhere."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gllm.cli.gateway import News
from gllm.cli.screen import Screen, say

BAR = 24

ENDINGS = {
    "failed": "failed",
    "returned": "returned to what it served",
    "left": "could not be returned to what it served",
}
"""Of a load that fails, in words that everybody understands."""

DRAW_EVERY_S = 0.1


@dataclass
class Lane:
    """One of them."""

    doing: str = "starting"
    part: float | None = None
    said: str = ""

    def begin(self, doing: str) -> bool:
        """Whether that is something new."""
        if doing == self.doing:
            return False
        self.doing, self.part, self.said = doing, None, ""
        return True


class Panel:
    def __init__(self, screen: Screen | None) -> None:
        self._screen = screen
        self._since = time.monotonic()
        self._lanes: dict[str, Lane] = {}
        self._shown = False
        self._waiting_for = ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._screen is None:
            say(text)
        else:
            self._screen.write(f"{text}\n")

    def line(self, name: str, text: str) -> None:
        """Something that one of them said. While a terminal shows how far each is, its latest line is enough."""
        text = text.removeprefix(f"{name}: ")  # a worker names itself, too
        if self._screen is None or not self._shown:
            self.say(text if _is_json(text) else f"{name}: {text}")
        elif lane := self._lanes.get(name):
            lane.said = text

    def step(self, name: str, doing: str, part: float | None = None, said: str = "") -> None:
        lane = self._lanes.setdefault(name, Lane(""))
        if lane.begin(doing) and self._screen is None:
            self.say(f"{name}: {doing}")
        lane.part = part
        lane.said = said or lane.said

    def forget(self, name: str) -> None:
        """Nobody waits for this one any more."""
        self._lanes.pop(name, None)

    def follow(self, news: News) -> None:
        if news.step in ENDINGS:
            self._end(news.worker, ENDINGS[news.step], news.said)
        else:
            self.step(news.worker, news.step, news.part, news.said)

    def _end(self, name: str, how: str, said: str) -> None:
        """It did not come to what it was to: that stays, also on a terminal."""
        lane = self._lanes.setdefault(name, Lane(""))
        if lane.begin(how):
            self.say(f"{name}: {how}" + (f" ({said.rstrip('.')})" if said else ""))

    def tick(self) -> None:
        if self._screen is not None and self._shown:
            self._screen.status(*self._drawn())

    def show(self, waiting_for: str) -> None:
        self._shown, self._since, self._waiting_for = True, time.monotonic(), waiting_for
        self.tick()

    def hide(self) -> None:
        """Nobody waits any more: from now on all that they say is told."""
        self._shown = False
        if self._screen is not None:
            self._screen.status()

    def _drawn(self) -> Iterator[str]:
        names = max(map(len, self._lanes), default=0)
        doings = max((len(lane.doing) for lane in self._lanes.values()), default=0)
        for name, lane in self._lanes.items():
            drawn = f"  {name:{names}}  {bar(lane.part, lane.doing)}  {lane.doing:{doings}}  {lane.said}"
            yield "".join(each if each.isprintable() else " " for each in drawn).rstrip()  # nothing moves the cursor
        yield f"{self.seconds:4.0f} s  {self._waiting_for}"


@contextmanager
def watching(panel: Panel, what: str) -> Iterator[None]:
    """It is drawn again and again within the block, and gone after it."""
    loop = asyncio.get_running_loop()

    drawing: asyncio.Handle

    def draw() -> None:
        nonlocal drawing
        panel.tick()
        drawing = loop.call_later(DRAW_EVERY_S, draw)

    panel.show(what)
    draw()
    try:
        yield
    finally:
        drawing.cancel()
        panel.hide()


def bar(part: float | None, doing: str = "") -> str:
    """Where nobody knows how far it is, it says so by being empty."""
    known = 0.0 if part is None else min(1.0, max(0.0, part))
    full = BAR if doing == "ready" else round(known * BAR)
    percent = "     " if part is None else f"{known * 100:3.0f} %"
    return f"{'━' * full}{'┄' * (BAR - full)} {percent}"


def _is_json(line: str) -> bool:
    """A line for machines stays one: it says itself where it comes from."""
    return line.startswith('{"') and line.endswith("}")
