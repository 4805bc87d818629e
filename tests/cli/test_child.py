"""A process that is kept: when it counts as up, and when it is started again."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from gllm.cli import child
from gllm.cli.child import Child, Program
from tests.support.clock import FakeClock
from tests.support.ports import free_port

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GLLM", (sys.executable, str(STAND_IN)))


class Kept:
    """A worker that is kept, and what is noted of it."""

    def __init__(self, logs: Path) -> None:
        self.clock = FakeClock()
        self.notes: list[str] = []
        self.said: list[str] = []
        port = free_port()
        words = ("worker", "--name", "w", "--host", "127.0.0.1", "--port", str(port), "--gpus", "none")
        program = Program("w", words, f"http://127.0.0.1:{port}/health", 2.0, {"CLUSTER_SECRET": "s"})
        self.child = Child(
            program, logs, told=self.said.append, noted=self.notes.append, clock=self.clock, first_pause_s=0.05
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with httpx.AsyncClient(trust_env=False, timeout=2) as http, asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self.child.keep(http))
            try:
                async with asyncio.timeout(60):
                    yield
            finally:
                keeping.cancel()

    async def noted(self, count: int) -> None:
        while len(self.notes) < count:
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        """The keeper's child is the program itself."""
        (keeper,) = psutil.Process().children()
        keeper.children()[0].kill()


async def test_pauses_double_until_it_has_lived_for_long(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    async with kept.running():
        await kept.child.up.wait()
        for dead in range(3):
            kept.kill()
            await kept.noted(2 * dead + 2)
        kept.clock.advance(61)
        kept.kill()
        await kept.noted(8)
    pauses = re.findall(r"killed by SIGKILL\. It is started again in (\S+) s\.", "\n".join(kept.notes))
    assert pauses == ["0.05", "0.1", "0.2", "0.05"]
    assert kept.notes[-1].startswith("w is back after ")
    assert psutil.Process().children() == []


async def test_one_that_has_never_been_up_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_BROKEN", "w")
    kept = Kept(tmp_path)
    async with kept.running():
        lost = await kept.child.lost
    assert lost.reason == "w did not start: exit code 1."
    assert lost.tail[-1] == "gllm: GPU 7 is taken."
    assert kept.notes == []


async def test_one_that_does_not_answer_in_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "START_WITHIN_S", 1.0)
    monkeypatch.setattr(child, "GLLM", ("sleep", "60"))
    kept = Kept(tmp_path)
    kept.child.program = Program("w", (), kept.child.program.probe, 2.0)
    async with kept.running():
        lost = await kept.child.lost
    assert lost.reason == "w did not answer within 1 s."
    assert psutil.Process().children() == []


async def test_all_that_it_says_is_told_and_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    async with kept.running():
        await kept.child.up.wait()
    assert kept.said[0].startswith("w takes --name w ")
    assert (tmp_path / "w.log").read_text().startswith("w takes --name w ")
