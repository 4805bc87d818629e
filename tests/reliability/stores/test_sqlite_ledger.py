import sqlite3
import stat
import subprocess
import sys
import threading
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reliability.ledger import Amounts, Book, Selection, merge
from app.reliability.stores import sqlite_ledger as subject
from app.reliability.stores.sqlite_ledger import SqliteLedger
from tests.support.processes import ROOT, clean_environment

TODAY = date(2026, 3, 1)
ALL = Selection(date.min, date.max)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "usage.db"


def one(requests: int = 1, tenant: str = "acme", model: str = "demo", day: date = TODAY) -> Book:
    return {(day, tenant, model): Amounts(requests, 10 * requests, 5 * requests, requests)}


def test_what_was_added_is_there_after_a_restart(path: Path) -> None:
    ledger = SqliteLedger(path)
    ledger.add(one())
    ledger.add(one(2))
    ledger.close()
    assert SqliteLedger(path).select(ALL) == one(3)


def test_the_file_is_its_owners_only(path: Path) -> None:
    SqliteLedger(path).add(one())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_selected_by_day_tenant_and_model(path: Path) -> None:
    ledger = SqliteLedger(path)
    book: Book = {}
    for back in range(4):
        for tenant in ("a", "b'; DROP TABLE usage; --"):
            for model in ("x", "y"):
                merge(book, one(tenant=tenant, model=model, day=TODAY - timedelta(days=back)))
    ledger.add(book)
    for selection in (
        ALL,
        Selection(TODAY - timedelta(days=1), TODAY),
        Selection(TODAY, TODAY, tenant="b'; DROP TABLE usage; --"),
        Selection(date.min, TODAY, "a", "y"),
        Selection(TODAY, TODAY, "nobody"),
    ):
        assert ledger.select(selection) == {key: amounts for key, amounts in book.items() if selection.takes(key)}


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(st.dates(), names, names, st.integers(0, 10**9)), max_size=8))
def test_any_name_and_day_comes_back_as_it_went(entries: list[tuple[date, str, str, int]]) -> None:
    from tempfile import TemporaryDirectory

    whole: Book = {}
    with TemporaryDirectory() as folder:
        ledger = SqliteLedger(Path(folder) / "usage.db")
        for day, tenant, model, requests in entries:
            ledger.add(one(requests, tenant, model, day))
            merge(whole, one(requests, tenant, model, day))
        assert ledger.select(ALL) == whole
        ledger.close()


def test_two_gateways_on_one_file_both_count(path: Path) -> None:
    def count() -> None:
        ledger = SqliteLedger(path)
        for _ in range(50):
            while not added(ledger):
                pass
        ledger.close()

    def added(ledger: SqliteLedger) -> bool:
        """SQLite is not fair to those who wait; who waited in vain comes again, as gateways do."""
        try:
            ledger.add(one())
        except sqlite3.OperationalError:  # it is locked
            return False
        return True

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert SqliteLedger(path).select(ALL) == one(150)


def test_a_locked_file_refuses_all_and_takes_it_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "BUSY_S", 0.01)
    ledger = SqliteLedger(path)
    ledger.add(one())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        ledger.add(one())
    other.execute("ROLLBACK")
    other.close()
    ledger.add(one())
    assert ledger.select(ALL) == one(2)


def test_a_full_disk_takes_all_or_nothing(path: Path) -> None:
    ledger = SqliteLedger(path)
    ledger.add(one())
    ledger._connection().execute("PRAGMA max_page_count = 1")
    many = {(TODAY, f"tenant-{number}", "m" * 500): Amounts(1) for number in range(200)}
    with pytest.raises(sqlite3.OperationalError, match="full"):
        ledger.add(many)
    assert ledger.select(ALL) == one()
    ledger.add(many)
    assert len(ledger.select(ALL)) == 201


@pytest.mark.parametrize("way", ["deleted", "moved away", "restored"])
def test_what_comes_after_its_file_has_gone_is_in_the_file_that_is_there(path: Path, way: str) -> None:
    ledger = SqliteLedger(path)
    ledger.add(one())
    if way == "restored":
        backup = SqliteLedger(path.with_name("backup"))
        backup.add(one())
        backup.close()
        backup.path.replace(path)
    elif way == "deleted":
        path.unlink()
    else:
        path.rename(path.with_name("aside"))
    for beside in ("-wal", "-shm"):
        path.with_name(f"{path.name}{beside}").unlink()
    ledger.add(one())
    ledger.add(one())
    ledger.close()
    assert SqliteLedger(path).select(ALL) == one(3 if way == "restored" else 2)


@pytest.mark.parametrize("what", ["a folder", "no database", "a newer gllm"])
def test_what_is_no_ledger_is_refused_and_left_alone(path: Path, what: str) -> None:
    path.parent.mkdir()
    if what == "a folder":
        path.mkdir()
    elif what == "no database":
        path.write_bytes(b"text " * 1_000)
    else:
        with sqlite3.connect(path) as newer:
            newer.execute("PRAGMA user_version = 99")
        newer.close()
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises((sqlite3.Error, OSError)):
        SqliteLedger(path).add(one())
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_reader_changes_nothing_and_needs_a_file(path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        SqliteLedger(path, read_only=True).select(ALL)
    assert not path.parent.exists()
    writer = SqliteLedger(path)
    writer.add(one())
    reader = SqliteLedger(path, read_only=True)
    assert reader.select(ALL) == one(), "also while a gateway writes"
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.add(one())


# --- what others do not know yet --------------------------------------------------------------------------------------


def test_what_is_shared_is_not_told_again_until_it_changes(path: Path) -> None:
    ledger = SqliteLedger(path)
    ledger.add(one())
    ledger.add(one(tenant="other"))
    told = ledger.unshared()
    assert told == one() | one(tenant="other")
    ledger.add(one())
    ledger.shared(told)
    assert ledger.unshared() == one(2), "what came meanwhile is told next"
    ledger.shared(ledger.unshared())
    assert ledger.unshared() == {}


def test_all_is_told_again_as_far_back_as_others_keep_it(path: Path) -> None:
    ledger = SqliteLedger(path)
    ledger.add(one() | one(day=TODAY - timedelta(days=5_000)))
    ledger.shared(ledger.unshared())
    ledger.share_all_again(TODAY)
    assert ledger.unshared() == one()


def test_a_fact_is_made_up_once_and_may_be_learned(path: Path) -> None:
    first, second = SqliteLedger(path), SqliteLedger(path)
    assert first.fact("gateway") == second.fact("gateway") == SqliteLedger(path).fact("gateway")
    assert first.fact("epoch") != first.fact("gateway")
    first.learn("epoch", "of Redis")
    assert second.fact("epoch") == "of Redis"


# --- killed -----------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from datetime import date
from pathlib import Path
from app.reliability.ledger import Amounts
from app.reliability.stores.sqlite_ledger import SqliteLedger
ledger = SqliteLedger(Path(sys.argv[1]))
while True:
    ledger.add({(date(2026, 3, 1), "acme", "demo"): Amounts(1, 10, 5, 1)})
    print(flush=True)
"""


def test_what_was_written_survives_a_kill_at_any_moment(path: Path) -> None:
    answered = 0
    for lines in (1, 7, 40):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=ROOT, env=clean_environment()
        )
        assert writer.stdout is not None
        for _ in range(lines):
            writer.stdout.readline()
        writer.kill()
        answered += lines + writer.stdout.read().count(b"\n")
        writer.stdout.close()
        writer.wait()
        (amounts,) = SqliteLedger(path).select(ALL).values()
        assert answered <= amounts.requests <= answered + 1
        answered = amounts.requests
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    file.close()
