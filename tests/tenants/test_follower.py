"""The directory follows its file: written, replaced, half written, spoilt, gone and back."""

import asyncio
import logging
import os
from datetime import date
from pathlib import Path

import pytest

from app.tenants import follower as module
from app.tenants.file import BadTenants
from app.tenants.follower import Follower
from app.tenants.roster import Roster
from tests.support.until import until
from tests.tenants.files import ADMIN_KEY, RESEARCH_KEY, TENANTS, hash_of

OTHER = f'[[tenant]]\nname = "other"\n[[tenant.key]]\nsha256 = "{hash_of("other-key")}"\n'


class Following:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[tuple[int, str]] = []
        path.write_text(TENANTS)
        self.follower = Follower(path, lambda: date(2030, 1, 31), self._told)

    def _told(self, roster: Roster, problem: BadTenants | None) -> None:
        self.told.append((len(roster.tenants), str(problem or "")))

    def who(self, key: str = RESEARCH_KEY) -> str:
        tenant = self.follower.directory.find(key.encode())
        return tenant.name if tenant else ""

    def settle(self) -> None:
        """One look sees the change, the next that it goes on no longer."""
        self.follower.look()
        self.follower.look()


@pytest.fixture
def following(tmp_path: Path) -> Following:
    return Following(tmp_path / "tenants.toml")


def test_what_has_not_changed_is_not_read_again(following: Following) -> None:
    following.settle()
    assert following.who() == "research"
    assert following.told == []


def test_a_file_that_was_written_over_is_read_and_the_old_keys_are_gone(following: Following) -> None:
    following.path.write_text(OTHER)
    following.settle()
    assert (following.who(), following.who("other-key")) == ("", "other")
    assert following.told == [(1, "")]


def test_a_file_that_took_the_place_of_the_old_one_is_read(following: Following) -> None:
    old = following.path.stat()
    new = following.path.with_name("new")
    new.write_text(TENANTS.replace("research", "searcher"))
    os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert new.stat().st_size == old.st_size
    new.replace(following.path)
    following.settle()
    assert following.who() == "searcher", "same size, same date, another file"


def test_a_link_that_points_elsewhere_is_read(following: Following) -> None:
    link = following.path.with_name("link.toml")
    link.symlink_to(following.path)
    follower = Follower(link, lambda: date(2030, 1, 31), lambda roster, problem: None)
    other = following.path.with_name("other.toml")
    other.write_text(OTHER)
    link.unlink()
    link.symlink_to(other)
    follower.look()
    follower.look()
    assert follower.directory.find(b"other-key")


def test_a_file_that_is_still_being_written_is_not_read_yet(following: Following) -> None:
    half = TENANTS[: TENANTS.index('[[tenant]]\nname = "operators"')]
    following.path.write_text(half)
    following.follower.look()
    following.path.write_text(TENANTS + "\n# whole\n")
    following.follower.look()
    assert following.told == [], "it changed between the looks"
    assert following.who(ADMIN_KEY) == "operators"
    following.follower.look()
    assert following.told == [(3, "")]


def test_a_bad_file_changes_nothing_and_is_told_once_until_it_is_good(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    following.path.write_text(TENANTS + "weight = 0\n")
    following.settle()
    following.settle()
    assert following.who() == "research"
    line = TENANTS.count("\n") + 1
    problem = f"{following.path}, line {line}: weight is not a field that is known here (did you mean weight?)."
    assert following.told == [(3, problem)]
    (said,) = caplog.records
    assert said.levelno == logging.ERROR
    assert said.getMessage() == f"{problem} Until that is mended, the tenants and keys read before stay in force."
    caplog.clear()
    following.path.write_text(OTHER)
    following.settle()
    assert following.told[1:] == [(1, "")]
    assert [each.getMessage() for each in caplog.records] == [f"{following.path} is read again."]


@pytest.mark.parametrize("content", ["", "# soon\n"])
def test_an_emptied_file_locks_nobody_out(following: Following, content: str) -> None:
    following.path.write_text(content)
    following.settle()
    assert following.who() == "research"
    assert "no [[tenant]]" in following.told[0][1]


def test_a_file_that_vanishes_is_missed_and_may_come_back(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    following.path.unlink()
    following.settle()
    following.settle()
    assert following.who() == "research"
    assert [each[0] for each in following.told] == [3]
    assert "No such file" in following.told[0][1]
    following.path.write_text(OTHER)
    following.settle()
    assert following.who("other-key") == "other"
    assert [each.levelname for each in caplog.records] == ["ERROR", "WARNING"]


def test_a_file_that_is_away_for_a_moment_is_not_missed(following: Following) -> None:
    """As some editors write: away, then there again."""
    following.path.unlink()
    following.follower.look()
    following.path.write_text(OTHER)
    following.settle()
    assert following.told == [(1, "")]


def test_a_file_made_readable_again_is_read(following: Following) -> None:
    following.path.write_text("[[tenant]")
    following.settle()
    following.path.write_text(TENANTS)
    following.path.chmod(0o640)
    following.settle()
    assert [each[0] for each in following.told] == [3, 3]
    assert following.told[1][1] == ""


def test_a_defect_of_ours_in_reading_it_ends_nothing(
    following: Following, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "load", lambda path: 1 / 0)
    following.path.write_text(OTHER)
    following.settle()
    assert following.who() == "research"
    assert following.told == [(3, f"{following.path}: it cannot be understood.")]
    assert "ZeroDivisionError" in caplog.text


def test_who_starts_with_a_bad_file_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(BadTenants):
        Follower(tmp_path / "nope", lambda: date(2030, 1, 31), lambda roster, problem: None)


async def test_it_looks_by_itself_beside_the_loop_and_ends_with_its_task(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0)
    task = asyncio.create_task(following.follower.run())
    following.path.write_text(OTHER)
    await until(lambda: following.who("other-key") == "other")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
