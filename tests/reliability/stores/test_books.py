import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest

from app.generation import Usage
from app.reliability.ledger import Amounts, Ledger, Selection, total
from app.reliability.stores import books as subject
from app.reliability.stores import sqlite_ledger
from app.reliability.stores.books import Books, Report, Unreadable
from app.reliability.stores.redis import SharedStore
from app.reliability.stores.sqlite_ledger import FILE, SqliteLedger
from tests.reliability.stores.conftest import Stores
from tests.support.clock import FakeClock

TODAY = date(2026, 3, 1)
DAY = Selection(TODAY, TODAY)

Keep = Callable[..., Books]


@pytest.fixture
async def keep(tmp_path: Path) -> AsyncIterator[Keep]:
    kept: list[Books] = []

    def books(place: str = "a", store: SharedStore | None = None, every_s: float = 3_600) -> Books:
        kept.append(Books(Ledger(lambda: TODAY), tmp_path / place, every_s, store))
        return kept[-1]

    yield books
    for each in kept:
        await each.aclose()


@pytest.fixture
async def store(redis_url: str, stores: Stores) -> SharedStore:
    store = stores(redis_url)
    await store.command("FLUSHDB")
    return store


def use(books: Books, times: int = 1, tenant: str = "acme") -> None:
    for _ in range(times):
        books.ledger.add(tenant, "demo", Usage(10, 5, 1))


def requests(report: Report) -> int:
    return total(report.book).requests


def in_file(place: Path) -> int:
    return total(SqliteLedger(place / FILE, read_only=True).select(DAY)).requests


# --- one gateway ------------------------------------------------------------------------------------------------------


async def test_a_flush_writes_what_was_used_since_the_last(keep: Keep, tmp_path: Path) -> None:
    books = keep()
    use(books, 3)
    await books.flush()
    await books.flush()
    use(books)
    await books.flush()
    assert in_file(tmp_path / "a") == 4


async def test_without_usage_there_is_not_even_a_file(keep: Keep, tmp_path: Path) -> None:
    books = keep()
    await books.flush()
    assert not (tmp_path / "a").exists()


async def test_it_flushes_by_itself_and_once_more_at_the_end(keep: Keep, tmp_path: Path) -> None:
    books = keep(every_s=0.01)
    use(books)
    loop = asyncio.create_task(books.run())
    async with asyncio.timeout(10):
        while not (tmp_path / "a" / FILE).exists() or len(books.ledger):
            await asyncio.sleep(0.01)
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop
    use(books)
    await books.aclose()
    assert in_file(tmp_path / "a") == 2


async def test_a_flush_that_is_cancelled_loses_nothing_and_doubles_nothing(keep: Keep, tmp_path: Path) -> None:
    books = keep()
    for steps in range(12):
        use(books)
        flush = asyncio.create_task(books.flush())
        for _ in range(steps % 4):
            await asyncio.sleep(0)
        flush.cancel()
        with suppress(asyncio.CancelledError):
            await flush
    await books.aclose()
    assert in_file(tmp_path / "a") == 12


async def test_a_report_has_what_was_used_until_now(keep: Keep) -> None:
    books = keep()
    use(books, 2)
    use(books, 1, tenant="other")
    report = await books.report(Selection(TODAY, TODAY, tenant="acme"))
    assert report == Report({(TODAY, "acme", "demo"): Amounts(2, 20, 10, 2)}, "gateway")


async def test_it_is_known_how_much_is_not_written_and_for_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_ledger, "BUSY_S", 0.01)
    clock = FakeClock()
    books = Books(Ledger(lambda: TODAY), tmp_path, 3_600, None, clock)
    use(books)
    clock.advance(5)
    assert (books.unwritten, books.age_s, books.failures) == (1, 5, 0)
    await books.flush()
    assert (books.unwritten, books.age_s) == (0, 0)
    clock.advance(5)
    await books.flush()
    assert books.age_s == 0, "where there was nothing to write, all is written"
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    use(books)
    for _ in range(3):
        clock.advance(5)
        await books.flush()
    assert (books.unwritten, books.age_s, books.failures) == (1, 15, 3)
    other.execute("ROLLBACK")
    await books.flush()
    assert (books.unwritten, books.age_s, books.failures) == (0, 0, 3)
    await books.aclose()


async def test_a_locked_file_is_told_once_and_written_later(
    keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite_ledger, "BUSY_S", 0.01)
    books = keep()
    use(books)
    await books.flush()
    other = sqlite3.connect(tmp_path / "a" / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        use(books)
        await books.flush()
    assert requests(await books.report(DAY)) == 4, "what is not written yet counts as well"
    assert [record.message for record in caplog.records] == [
        "usage cannot be written and is kept in memory: OperationalError: database is locked"
    ]
    other.execute("ROLLBACK")
    other.close()
    await books.flush()
    assert in_file(tmp_path / "a") == 4
    assert caplog.records[-1].message == "usage is written again"
    assert len(caplog.records) == 2


async def test_what_can_never_be_written_is_told_at_the_end(
    keep: Keep, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_text("a file where a folder should be")
    books = keep()
    use(books)
    with pytest.raises(Unreadable):
        await books.report(DAY)
    await books.aclose()
    assert "2026-03-01 'acme' 'demo' Amounts(requests=1" in caplog.records[-1].message


async def test_a_defect_is_told_with_its_trace_and_ends_nothing(
    keep: Keep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    books = keep()
    with monkeypatch.context() as patch:
        patch.setattr(SqliteLedger, "add", broken)
        use(books)
        await books.flush()
    assert caplog.records[0].exc_info
    assert requests(await books.report(DAY)) == 1


# --- several gateways -------------------------------------------------------------------------------------------------


async def test_all_gateways_see_what_all_have_used(keep: Keep, store: SharedStore) -> None:
    one, two = keep("a", store), keep("b", store)
    use(one, 2)
    use(two, 3)
    await one.flush()
    report = await two.report(DAY)
    assert (requests(report), report.scope, report.note) == (5, "cluster", None)


async def test_while_redis_is_down_each_shows_its_own_and_says_so(keep: Keep, store: SharedStore) -> None:
    one, two = keep("a", store), keep("b", store)
    use(one, 2)
    use(two, 3)
    store.available = False
    report = await one.report(DAY)
    assert (requests(report), report.scope) == (2, "gateway")
    assert report.note is not None
    assert requests(await two.report(DAY)) == 3
    store.available = True
    assert [requests(await each.report(DAY)) for each in (one, two, one)] == [2, 5, 5]


async def test_a_gateway_that_was_killed_before_it_shared_does_so_when_it_is_back(
    keep: Keep, store: SharedStore
) -> None:
    killed = keep("a", store)
    use(killed, 2)
    store.available = False
    await killed.flush()
    store.available = True
    assert requests(await keep("b", store).report(DAY)) == 0
    again = keep("a", store)
    await again.flush()
    assert requests(await keep("b", store).report(DAY)) == 2


async def test_one_that_was_killed_after_it_told_but_before_it_knew_is_not_counted_twice(
    keep: Keep, store: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = keep("a", store)
    use(killed, 2)

    def dies(*_: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteLedger, "shared", dies)
        await killed.flush()
    again = keep("a", store)
    use(again, 1)
    assert requests(await again.report(DAY)) == 3


async def test_two_on_one_folder_by_mistake_double_nothing(keep: Keep, store: SharedStore) -> None:
    one, two = keep("a", store), keep("a", store)
    for _ in range(5):
        use(one, 2)
        use(two, 3)
        await asyncio.gather(one.flush(), two.flush())
    assert requests(await one.report(DAY)) == 25
    assert requests(await keep("b", store).report(DAY)) == 25


async def test_a_redis_that_forgot_everything_is_told_it_again(
    keep: Keep, store: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_ledger, "AT_ONCE", 2)
    monkeypatch.setattr(subject, "AT_ONCE", 2)
    busy, idle = keep("a", store), keep("b", store)
    for number in range(5):
        use(busy, 1, f"tenant-{number}")
        use(idle, 1, f"tenant-{number}")
    await busy.flush()
    await idle.flush()
    assert requests(await busy.report(DAY)) == 10
    await store.command("FLUSHDB")
    use(busy)
    await busy.flush()
    for _ in range(subject.ROUNDS_UNTIL_SURE):
        await idle.flush()
    report = await keep("c", store).report(DAY)
    assert requests(report) == 11


async def test_a_redis_that_forgot_the_latest_is_told_it_again(keep: Keep, store: SharedStore) -> None:
    """A replica that has taken over, or a restart from an older snapshot."""
    books = keep("a", store)
    use(books, 1, "early")
    await books.flush()
    snapshot = {key: await store.command("DUMP", key) for key in await store.command("KEYS", "*")}
    use(books, 2, "late")
    assert requests(await books.report(DAY)) == 3
    await store.command("FLUSHDB")
    for key, value in snapshot.items():
        await store.command("RESTORE", key, 0, value)
    for _ in range(subject.ROUNDS_UNTIL_SURE):
        await books.flush()
    assert requests(await keep("b", store).report(DAY)) == 3


async def test_a_defect_in_what_redis_holds_costs_nothing_here(
    keep: Keep, store: SharedStore, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    await store.command("SET", "gllm:{ledger}:2026-03-01", "no hash")
    books = keep("a", store)
    use(books)
    await books.flush()
    assert "WRONGTYPE" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR
    assert in_file(tmp_path / "a") == 1
    await store.command("DEL", "gllm:{ledger}:2026-03-01")
    await books.flush()
    assert requests(await books.report(DAY)) == 1
