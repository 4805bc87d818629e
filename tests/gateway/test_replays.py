"""Where a store fails, or the gateway ends, in the middle of a keyed call."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from app.errors import Draining, GatewayError, StoreDown
from app.gateway.answers import Headers, Sink
from app.gateway.replays import KEEP_TRIES, Replays
from app.generation import Call, Route
from app.reliability.stores.answer_file import AnswerFile
from app.reliability.stores.answers import Kept, Key
from app.reliability.stores.embedded import EmbeddedAnswers
from app.reliability.watch import Watch
from app.settings import Idempotency
from app.telemetry.record import Record
from app.tenant import Tenant
from tests.support.clock import FakeClock
from tests.support.inline import Inline
from tests.support.until import until

CALL = Call("req-1", Route.CHAT, "demo", b"{}", 2_000.0, key="k", fingerprint=b"f")


class Client:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.committed = False
        self.body = b""
        self.ended = False

    def also(self, headers: Headers) -> None: ...

    def offer(self, block: bytes, *, last: bool) -> bool:
        return False

    async def write(self, block: bytes) -> None:
        self.committed = True
        self.body += block

    async def end(self) -> None:
        self.ended = True

    async def fail(self, error: GatewayError) -> None: ...


class Disk(AnswerFile):
    """One that is full at times."""

    full = False

    def put(self, key: Key, answer: Kept) -> None:
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        super().put(key, answer)


class House:
    def __init__(self, folder: Path) -> None:
        clock = FakeClock()
        self.disk = Disk(folder / "answers.sqlite", 2**20, 1_000.0, clock)
        self.store = EmbeddedAnswers(self.disk)
        self.watch = Watch(clock)
        self.replays = Replays(self.store, Idempotency(), self.watch, self._sleep)
        self.pauses = 0
        self.awake = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.executions = 0

    async def _sleep(self, seconds: float) -> None:
        self.pauses += 1
        await self.awake.wait()

    async def ask(self, call: Call = CALL) -> Client:
        client = Client()
        record = Record("req", Route.CHAT, "POST", 0.0)
        await self.replays.serve(call, client, record, self._work)
        return client

    async def _work(self, call: Call, out: Sink, record: Record) -> None:
        self.executions += 1
        await self.go_on.wait()
        await out.write(b"answer")


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr("app.reliability.stores.embedded.ThreadPoolExecutor", Inline)
    house = House(tmp_path)
    yield house
    assert len(house.replays) == 0
    assert len(house.watch) == 0
    await house.store.aclose()


@pytest.mark.parametrize("running", [False, True])
async def test_tenants_do_not_see_each_others_keys(house: House, running: bool) -> None:
    """Not even that they are used, and for what."""
    other = msgspec.structs.replace(CALL, tenant=Tenant("other"), fingerprint=b"another body")
    async with house.replays.running(drain_s=5):
        if running:
            house.go_on.clear()
        both = [asyncio.create_task(house.ask(call)) for call in (CALL, other)]
        await until(lambda: house.executions == 2)
        house.go_on.set()
        assert [(await asking).body for asking in both] == [b"answer"] * 2
        await house.ask(other)
    assert house.executions == 2


async def test_tenants_give_up_only_their_own_keys(house: House) -> None:
    async with house.replays.running(drain_s=5):
        house.go_on.clear()
        asking = asyncio.create_task(house.ask())
        await until(lambda: house.executions == 1)
        house.replays.give_up(Tenant("other"), "k")
        asking.cancel()
        await until(asking.done)
        house.watch.sweep()
        await asyncio.sleep(0)
        assert len(house.replays) == 1
        house.replays.give_up(CALL.tenant, "k")
        house.watch.sweep()
        await until(lambda: len(house.replays) == 0)


async def test_a_full_disk_holds_up_no_client_and_gets_the_answer_when_there_is_room(house: House) -> None:
    async with house.replays.running(drain_s=5):
        house.disk.full = True
        assert (await house.ask()).body == b"answer"
        assert (await house.ask()).body == b"answer", "from memory"
        house.disk.full = False
        house.awake.set()
        await until(lambda: len(house.replays) == 0)
        assert (await house.ask()).body == b"answer", "from the disk"
    assert (house.executions, house.pauses) == (1, 1)


async def test_a_disk_that_stays_full_is_given_up_and_the_key_is_free(house: House) -> None:
    async with house.replays.running(drain_s=5):
        house.disk.full = True
        house.awake.set()
        await house.ask()
        await until(lambda: len(house.replays) == 0)
        house.disk.full = False
        await house.ask()
    assert (house.executions, house.pauses) == (2, KEEP_TRIES)


async def test_an_end_does_not_wait_for_a_disk_that_stays_full(house: House) -> None:
    async with house.replays.running(drain_s=60):
        house.disk.full = True
        await house.ask()
        house.awake.set()
    assert house.pauses == 1


async def test_what_is_running_at_the_end_frees_its_key(house: House) -> None:
    house.go_on.clear()
    async with house.replays.running(drain_s=0):
        asking = asyncio.create_task(house.ask())
        await until(lambda: house.executions == 1)
    with pytest.raises(Draining):
        await asking
    assert not isinstance(await house.store.claim(Key.of(CALL)), Kept)


async def test_after_the_end_nothing_begins(house: House) -> None:
    async with house.replays.running(drain_s=0):
        pass
    with pytest.raises(Draining):
        await house.ask()
    assert house.executions == 0


async def test_a_gateway_that_is_cancelled_leaves_nobody_waiting(house: House) -> None:
    house.go_on.clear()

    async def life() -> None:
        async with house.replays.running(drain_s=60):
            await asyncio.Event().wait()

    living = asyncio.create_task(life())
    await asyncio.sleep(0)
    asking = asyncio.create_task(house.ask())
    await until(lambda: house.executions == 1)
    living.cancel()
    await until(lambda: living.cancelling() > 0 and house.replays._closing)
    living.cancel()
    with pytest.raises(Draining):
        await asking
    with pytest.raises(asyncio.CancelledError):
        await living


async def test_a_stop_while_the_store_is_asked_gives_the_claim_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    claim = house.store.claim

    async def slowly(key: Key) -> object:
        asked.set()
        await answer.wait()
        return await claim(key)

    with monkeypatch.context() as slow:
        slow.setattr(house.store, "claim", slowly)
        async with house.replays.running(drain_s=60):
            asking = asyncio.create_task(house.ask())
            await asked.wait()
            asking.cancel()
            await until(asking.done)
            house.watch.clock = lambda: 1e6  # nobody came back
            house.watch.sweep()
            answer.set()
    assert house.executions == 0
    assert not isinstance(await house.store.claim(Key.of(CALL)), Kept)


async def test_a_store_that_does_not_answer_is_told_to_all_who_asked(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(scope: str) -> None:
        raise OSError

    monkeypatch.setattr(house.disk, "find", broken)
    async with house.replays.running(drain_s=0):
        done = await asyncio.gather(*(house.ask() for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in done] == [StoreDown] * 3
    assert house.executions == 0
