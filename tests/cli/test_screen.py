"""What stands on a terminal in the end, whatever was written and in which order."""

import io
import os
from collections.abc import Iterator
from errno import ENOSPC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gllm.cli.gateway import News
from gllm.cli.panel import Panel, bar
from gllm.cli.screen import Progress, Screen, say
from tests.cli.terminal import Picture

SIZE = os.terminal_size((40, 10))


class Drawn:
    def __init__(self) -> None:
        self._terminal = io.StringIO()
        self.screen = Screen(self._terminal)

    @property
    def picture(self) -> Picture:
        picture = Picture()
        picture.feed(self._terminal.getvalue().replace("\n", "\r\n"))  # as a terminal's driver does
        return picture

    @property
    def lines(self) -> list[str]:
        return self.picture.lines


@pytest.fixture(autouse=True)
def _size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.get_terminal_size", lambda *_, **__: SIZE)  # `pytest -v` asks meanwhile, too
        yield


def test_what_is_written_stands_above_the_status() -> None:
    drawn = Drawn()
    drawn.screen.status("one", "two")
    drawn.screen.write("a line\n")
    assert drawn.lines == ["a line", "one", "two"]
    drawn.screen.status("three")
    assert drawn.lines == ["a line", "three"]
    drawn.screen.status()
    assert drawn.lines == ["a line", ""]


def test_a_line_that_is_written_in_pieces_stays_whole() -> None:
    drawn = Drawn()
    drawn.screen.status("one")
    drawn.screen.write("a ")
    drawn.screen.write("line")
    drawn.screen.write("\n")
    assert drawn.lines == ["a line", ""]
    drawn.screen.status("one")
    assert drawn.lines == ["a line", "one"]


def test_a_status_wider_or_longer_than_the_terminal_is_cut() -> None:
    drawn = Drawn()
    drawn.screen.status(*["x" * 100] * 50)
    assert drawn.lines == ["x" * 38 + "…"] * 9


@given(st.lists(st.lists(st.text("ab ", min_size=1, max_size=60), max_size=12) | st.text("xy", min_size=1, max_size=9)))
def test_nothing_written_is_ever_lost(steps: list[list[str] | str]) -> None:
    drawn = Drawn()
    written: list[str] = []
    status: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.get_terminal_size", lambda *_, **__: SIZE)  # `pytest -v` asks meanwhile, too
        for step in steps:
            if isinstance(step, str):
                drawn.screen.write(f"{step}\n")
                written.append(step)
            else:
                drawn.screen.status(*step)
                status = [line if len(line) <= 39 else f"{line[:38]}…" for line in step[:9]]
    assert drawn.lines == [*written, *(status or [""])]
    assert drawn.picture.widest <= 39


def test_a_bar_is_as_full_as_it_says() -> None:
    assert bar(None) == "┄" * 24 + "      "
    assert bar(0.0) == "┄" * 24 + "   0 %"
    assert bar(0.5) == "━" * 12 + "┄" * 12 + "  50 %"
    assert bar(1.0) == "━" * 24 + " 100 %"
    assert bar(7.0) == bar(1.0)
    assert bar(None, "ready") == "━" * 24 + "      "


def test_what_an_engine_says_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn()
    panel = Panel(drawn.screen)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((80, 10)))
        panel.show("Loading m")
        panel.follow(News(state="running", worker="w", step="x", said="a\x1b[5Ab\rc"))
        panel.tick()
    assert drawn.lines[0] == f"  w  {'┄' * 24}        x  a [5Ab c"


def test_how_a_load_fails_stays_on_the_terminal() -> None:
    drawn = Drawn()
    panel = Panel(drawn.screen)
    panel.show("Loading m")
    panel.follow(News(state="running", worker="w-0", step="loading", part=0.5))
    panel.follow(News(state="running", worker="w-0", step="failed", said="exit code 1."))
    panel.follow(News(state="running", worker="w-1", step="returned"))
    panel.hide()
    assert drawn.lines == ["w-0: failed (exit code 1)", "w-1: returned to what it served", ""]


def test_once_nobody_waits_lines_are_told() -> None:
    drawn = Drawn()
    panel = Panel(drawn.screen)
    panel.step("worker-0", "loading")
    panel.show("Loading m")
    panel.line("worker-0", "shard 1")
    panel.tick()
    assert drawn.lines == [f"  worker-0  {'┄' * 24}  …", "   0 s  Loading m"]
    panel.hide()
    panel.line("worker-0", "answered")
    panel.line("worker-0", "worker-0: engine: importing")
    panel.line("gateway", '{"event": "request"}')
    assert drawn.lines == ["worker-0: answered", "worker-0: engine: importing", '{"event": "request"}', ""]


class Unheard(io.StringIO):
    """A file on a disk that is full."""

    def flush(self) -> None:
        raise OSError(ENOSPC, "No space left on device")


def test_what_nobody_can_hear_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Unheard())
    monkeypatch.setattr("sys.stderr", Unheard())
    say("a word")
    say("another", complaint=True)
    screen = Screen(Unheard())
    screen.status("one")
    assert screen.write("a line\n") == 7
    Progress(screen, "starting").tick()
    Progress(None, "starting").line("engine-0", "loading")
    Panel(None).say("a line")
