"""Answers of one gateway by itself: the file they are in, and the disk it is on."""

import asyncio
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.errors import KeyInFlight, StoreDown
from app.reliability.stores.answer_file import AnswerFile
from app.reliability.stores.answers import Kept, Key
from app.reliability.stores.embedded import EmbeddedAnswers
from tests.reliability.stores.answers import GENEROUS, KEPT_S, KEY, OTHER_KEY, claimed, recorded
from tests.support.clock import FakeClock


@dataclass
class Disk:
    path: Path
    clock: FakeClock = field(default_factory=FakeClock)

    def file(self, max_bytes: int = GENEROUS) -> AnswerFile:
        return AnswerFile(self.path, max_bytes, KEPT_S, self.clock)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "answers.sqlite")


def kept(frame: bytes) -> Kept:
    return Kept("gpu-1", 1, [frame])


def test_nobody_else_may_read_the_file(disk: Disk) -> None:
    disk.file().put(KEY, kept(b"secret"))
    assert {each.stat().st_mode & 0o077 for each in disk.path.parent.iterdir()} == {0}


def test_an_answer_is_kept_for_its_time_and_then_cleared_away(disk: Disk) -> None:
    file = disk.file()
    file.put(KEY, kept(b"a"))
    disk.clock.advance(KEPT_S - 1)
    assert file.find("scope") == (b"asked", kept(b"a"))
    disk.clock.advance(1)
    assert file.find("scope") is None
    file.put(OTHER_KEY, kept(b"b"))
    file.close()
    with sqlite3.connect(disk.path) as db:
        assert db.execute("SELECT scope FROM answers").fetchall() == [("other",)]


def test_when_it_is_full_the_oldest_answers_go_and_their_keys_stay_used(disk: Disk) -> None:
    file = disk.file(max_bytes=5_000)
    for number in range(10):
        disk.clock.advance(1)
        file.put(Key(f"key-{number}", b"f"), kept(b"x" * 1_000))
    found = [file.find(f"key-{number}") for number in range(10)]
    frames = [each[1].frames for each in found if each is not None]
    assert len(frames) == 10
    assert [each is not None for each in frames] == [False] * 8 + [True] * 2
    assert frames[-1] == [b"x" * 1_000]


def test_when_it_is_full_of_used_keys_the_oldest_go(disk: Disk) -> None:
    file = disk.file(max_bytes=100_000)
    for number in range(500):
        file.put(Key(f"key-{number}", b"f"), Kept("", 0, None))
    assert file.find("key-0") is None
    assert file.find("key-499") is not None


def test_what_it_holds_is_counted_again_after_a_restart(disk: Disk) -> None:
    for number in range(10):
        disk.clock.advance(1)
        file = disk.file(max_bytes=5_000)
        file.put(Key(f"key-{number}", b"f"), kept(b"x" * 1_000))
        file.close()
    whole = [number for number in range(10) if (found := disk.file().find(f"key-{number}")) and found[1].frames]
    assert whole == [8, 9]


@pytest.mark.parametrize("damage", ["not a database", "torn"])
def test_a_damaged_file_is_put_aside_and_answers_are_kept_again(disk: Disk, damage: str) -> None:
    file = disk.file()
    for number in range(50):
        file.put(Key(f"key-{number}", b"f"), kept(b"x" * 1_000))
    file.close()
    data = disk.path.read_bytes()
    disk.path.write_bytes(b"nonsense" * 1_000 if damage == "not a database" else data[:4096] + b"\xff" * 20_000)
    file = disk.file()
    with pytest.raises(sqlite3.DatabaseError):
        touch_all(file)
    file.put(KEY, kept(b"a"))
    assert file.find("scope") == (b"asked", kept(b"a"))
    assert (disk.path.parent / "answers.sqlite.damaged").exists()


def touch_all(file: AnswerFile) -> None:
    for number in range(50):
        file.find(f"key-{number}")
        file.put(Key(f"new-{number}", b"f"), kept(b"x"))


def test_when_its_file_was_deleted_answers_are_kept_in_a_new_one(disk: Disk) -> None:
    file = disk.file()
    file.put(OTHER_KEY, kept(b"gone"))
    for each in list(disk.path.parent.iterdir()):
        each.unlink()
    file.put(KEY, kept(b"a"))
    file.close()
    again = disk.file()
    assert again.find("scope") == (b"asked", kept(b"a"))
    assert again.find("other") is None


async def test_a_disk_that_fails_is_a_store_that_is_down_until_it_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    store = EmbeddedAnswers(AnswerFile(folder / "answers.sqlite", GENEROUS, KEPT_S, FakeClock()))
    folder.write_text("a file, where a folder should be")
    for _ in range(2):
        with pytest.raises(StoreDown):
            await store.claim(KEY)
    folder.unlink()
    await claimed(store)
    await store.aclose()


async def test_a_full_disk_leaves_the_claim_and_finishing_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AnswerFile(tmp_path / "answers.sqlite", GENEROUS, KEPT_S, FakeClock())
    store = EmbeddedAnswers(file)
    claim = await claimed(store)

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(file, "put", full)
        with pytest.raises(StoreDown):
            await claim.finish(recorded(b"a"))
        with pytest.raises(KeyInFlight):
            await store.claim(KEY)
    await claim.finish(recorded(b"a"))
    assert await store.claim(KEY) == Kept("gpu-1", 2, [b"a"])
    await store.aclose()


async def test_a_disk_that_hangs_holds_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AnswerFile(tmp_path / "answers.sqlite", GENEROUS, KEPT_S, FakeClock())
    store = EmbeddedAnswers(file, limit_s=0.05)
    hung = threading.Event()
    monkeypatch.setattr(file, "find", lambda scope: hung.wait() and None)
    found = await asyncio.gather(*(store.claim(Key(f"{n}", b"f")) for n in range(20)), return_exceptions=True)
    assert {type(each) for each in found} == {StoreDown}
    hung.set()
    monkeypatch.undo()
    await claimed(store)
    await store.aclose()
