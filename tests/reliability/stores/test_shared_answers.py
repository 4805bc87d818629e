"""Answers that several gateways share: leases, and streams that are read elsewhere while they grow."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import ClientGone, ContextTooLong, Draining, GatewayError, StoreDown
from app.reliability.recording import Recording
from app.reliability.stores.answer_keys import AnswerKeys
from app.reliability.stores.answers import Kept, OwnerGone
from app.reliability.stores.followed import Followed
from app.reliability.stores.lease import Lease
from app.reliability.stores.redis import SharedStore
from app.reliability.stores.shared import SharedAnswers
from tests.reliability.stores.answers import KEPT_S, KEY, OTHER_KEY, claimed, recorded
from tests.reliability.stores.conftest import Stores
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer, redis_server

LEASE_S = 10.0


class Gateways:
    """Several, over one Redis."""

    def __init__(self, url: str, stores: Stores) -> None:
        self.clock = FakeClock()
        self.url = url
        self._stores = stores
        self.redis: list[SharedStore] = []

    def one(self, lease_s: float = LEASE_S, timeout_s: float = 5.0) -> SharedAnswers:
        self.redis.append(self._stores(self.url, timeout_s))
        return SharedAnswers(AnswerKeys(self.redis[-1], self.clock, KEPT_S, lease_s))

    async def back(self) -> None:
        """Redis is, and all know it."""
        async with asyncio.timeout(20), asyncio.TaskGroup() as watching:
            tasks = [watching.create_task(each.keep_watch()) for each in self.redis]
            while not all(each.available for each in self.redis):
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()


@pytest.fixture
async def gateways(redis_url: str, stores: Stores) -> Gateways:
    await stores(redis_url).command("FLUSHDB")
    return Gateways(redis_url, stores)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as own:
        yield own


async def leased(store: SharedAnswers, recording: Recording | None = None) -> Lease:
    lease = await claimed(store)
    assert isinstance(lease, Lease)
    if recording is not None:
        lease.begin(recording, lambda: None)
    return lease


async def following(store: SharedAnswers) -> Followed:
    found = await store.claim(KEY)
    assert isinstance(found, Followed)
    return found


async def test_a_running_stream_is_read_elsewhere_while_it_grows(gateways: Gateways) -> None:
    owner, other = gateways.one(), gateways.one()
    tape = recorded(b"a", b"b")
    lease = await leased(owner, tape)
    followed = await following(other)
    reading = asyncio.create_task(followed.next())
    while not lease.followed:
        await owner.beat()
    first = await reading
    assert (first.start, first.frames, first.replica, first.attempts) == (0, [b"a", b"b"], "gpu-1", 2)
    tape.add([b"c"])
    await owner.beat()
    second = await followed.next()
    assert (second.start, second.frames, second.ended) == (2, [b"c"], False)
    tape.add([b"d"])
    await lease.finish(tape)
    last = await followed.next()
    assert (last.start, last.frames, last.ended) == (3, [b"d"], True)


async def test_what_nobody_follows_is_not_published(gateways: Gateways, stores: Stores) -> None:
    owner = gateways.one()
    lease = await leased(owner, recorded(b"a"))
    await owner.beat()
    assert not lease.followed
    assert len(await stores(gateways.url).command("KEYS", "*")) == 1


async def test_a_failure_is_told_elsewhere_after_what_was_said(gateways: Gateways) -> None:
    owner, other = gateways.one(), gateways.one()
    lease = await leased(owner, recorded(b"a"))
    followed = await following(other)
    reading = asyncio.create_task(followed.next())
    while not lease.followed:
        await owner.beat()
    assert (await reading).frames == [b"a"]
    await lease.release(ContextTooLong("Too long.", param="messages"))
    failure = (await followed.next()).failure
    assert failure is not None
    assert isinstance(failure.error, ContextTooLong)
    assert failure.error.param == "messages"
    await leased(other)


@pytest.mark.parametrize("error", [ClientGone(), Draining()])
async def test_an_end_that_is_the_other_gateways_own_leaves_the_call_to_us(
    gateways: Gateways, error: GatewayError
) -> None:
    owner, other = gateways.one(), gateways.one()
    lease = await leased(owner, recorded())
    followed = await following(other)
    reading = asyncio.create_task(followed.next())
    while not lease.followed:
        await owner.beat()
    await lease.release(error)
    with pytest.raises(OwnerGone):
        await reading
    await leased(other)


async def test_a_run_that_ends_before_it_knows_of_its_follower_is_read_from_what_was_kept(gateways: Gateways) -> None:
    owner, other = gateways.one(), gateways.one()
    tape = recorded(b"a")
    lease = await leased(owner, tape)
    followed = await following(other)
    await lease.finish(tape)
    batch = await followed.next()
    assert (batch.start, batch.frames, batch.ended) == (0, [b"a"], True)


async def test_too_large_to_be_kept_it_is_read_to_its_end_elsewhere_all_the_same(gateways: Gateways) -> None:
    owner, other = gateways.one(), gateways.one()
    tape = recorded(b"a", max_bytes=2)
    lease = await leased(owner, tape)
    followed = await following(other)
    reading = asyncio.create_task(followed.next())
    while not lease.followed:
        await owner.beat()
    assert (await reading).frames == [b"a"]
    tape.add([b"b", b"c"])
    await lease.finish(tape)
    assert [(await followed.next()).frames, (await followed.next()).ended] == [[b"b", b"c"], True]
    assert await other.claim(KEY) == Kept("gpu-1", 2, None)


async def test_a_lease_is_renewed_and_without_its_owner_it_runs_out(gateways: Gateways) -> None:
    owner, other = gateways.one(lease_s=0.3), gateways.one(lease_s=0.3)
    await leased(owner)
    for _ in range(8):
        await asyncio.sleep(0.1)  # the lease is counted by Redis itself
        gateways.clock.advance(0.1)
        await owner.beat()
    followed = await following(other)
    with pytest.raises(OwnerGone):  # it has died
        await followed.next()
    await leased(other)


async def test_who_has_lost_the_lease_hears_of_it(gateways: Gateways, stores: Stores) -> None:
    owner, other = gateways.one(), gateways.one()
    lost: list[bool] = []
    lease = await leased(owner)
    lease.begin(recorded(), lambda: lost.append(True))
    await stores(gateways.url).command("FLUSHDB")  # as if it had run out
    await leased(other)
    gateways.clock.advance(LEASE_S / 2)
    await owner.beat()
    assert lost == [True]
    await lease.finish(recorded(b"late"))
    assert isinstance(await gateways.one().claim(KEY), Followed), "the other's lease stands"


async def test_a_redis_that_has_forgotten_all_is_told_again(gateways: Gateways, stores: Stores) -> None:
    owner = gateways.one()
    await leased(owner, recorded())
    await stores(gateways.url).command("FLUSHDB")
    gateways.clock.advance(LEASE_S / 2)
    await owner.beat()
    await following(gateways.one())


async def test_while_redis_is_down_keys_are_too_and_leases_survive_a_blink(server: RedisServer, stores: Stores) -> None:
    gateways = Gateways(server.url, stores)
    owner = gateways.one(timeout_s=0.2)
    lease = await leased(owner, recorded())
    server.pause()
    for _ in range(2):
        with pytest.raises(StoreDown):
            await owner.claim(OTHER_KEY)
    with pytest.raises(StoreDown):
        await lease.finish(recorded(b"a"))
    server.resume()
    await gateways.back()
    await lease.finish(recorded(b"a"))
    assert await gateways.one().claim(KEY) == Kept("gpu-1", 2, [b"a"])


async def test_a_claim_of_which_nobody_knows_whether_it_was_made_is_given_back(
    server: RedisServer, stores: Stores
) -> None:
    gateways = Gateways(server.url, stores)
    owner, other = gateways.one(timeout_s=0.2), gateways.one()
    await owner.find(KEY)
    server.pause()
    with pytest.raises(StoreDown):
        await owner.claim(KEY)  # it lies in the socket, and is carried out when Redis wakes
    server.resume()
    await gateways.back()
    await owner.beat()
    await leased(other)
