import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from app.reliability.stores import bundle
from app.reliability.stores import redis as subject
from app.reliability.stores.redis import Script, SharedStore, StoreRefused, StoreUnavailable, UnusableStore
from tests.reliability.stores.conftest import Stores, Told
from tests.reliability.stores.fake_redis import fake_redis
from tests.support.redis_server import RedisServer, redis_server

ADD = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """One of its own, for tests that hurt it."""
    with redis_server(tmp_path) as own:
        yield own


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"gllm:{{{request.node.name}}}"


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_a_script_runs_whether_redis_knows_it_or_not(redis_url: str, stores: Stores, key: str) -> None:
    store = stores(redis_url)
    assert [await store.run(ADD, [key], [2]) for _ in range(2)] == [2, 4]
    await store.command("SCRIPT", "FLUSH")
    assert await store.run(ADD, [key], [3]) == 7


async def test_commands_and_pipelines_answer_in_bytes_and_in_order(redis_url: str, stores: Stores, key: str) -> None:
    store = stores(redis_url)
    assert await store.command("SET", key, b"\xff\x00", "PX", 60_000) == b"OK"
    answers = await store.pipeline([("GET", key), ("STRLEN", key), ("GET", f"{key}:none")])
    assert answers == [b"\xff\x00", 2, None]


async def test_what_is_wrong_with_one_command_is_told_once_and_leaves_the_store_available(
    redis_url: str, stores: Stores, told: Told, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = stores(redis_url)
    await store.command("SET", key, "text")
    for _ in range(2):
        with pytest.raises(StoreRefused) as refused:
            await store.run(ADD, [key], [1])
        assert "not an integer" in str(refused.value.__cause__)
    with pytest.raises(StoreRefused):
        await store.pipeline([("GET", key), ("INCR", key), ("GET", key)])
    assert await store.command("GET", key) == b"text"
    assert told == [(True, "")]
    assert len(caplog.records) == 2


async def test_a_crowd_of_one_turn_goes_together(server: RedisServer, stores: Stores, key: str) -> None:
    store = stores(server.url)
    await asyncio.gather(*[store.run(ADD, [key], [1]) for _ in range(300)])
    assert await store.command("GET", key) == b"300"
    clients: bytes = await store.command("CLIENT", "LIST")
    assert clients.count(b"\n") == 300 / bundle.MOST


async def test_a_crowd_of_many_turns_shares_a_bounded_number_of_connections(
    server: RedisServer, stores: Stores, key: str
) -> None:
    store = stores(server.url, 5.0)
    server.pause()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3 * subject.CONNECTIONS):
            tasks.create_task(store.run(ADD, [key], [1]))
            await asyncio.sleep(0.001)
        server.resume()
    assert await store.command("GET", key) == b"%d" % (3 * subject.CONNECTIONS)
    clients: bytes = await store.command("CLIENT", "LIST")
    assert clients.count(b"\n") == subject.CONNECTIONS


async def test_each_of_a_bundle_gets_its_own_answers(redis_url: str, stores: Stores, key: str) -> None:
    store = stores(redis_url)
    await store.command("SET", key, "text")
    one, two, wrong, three = await asyncio.gather(
        store.command("ECHO", "one"),
        store.pipeline([("ECHO", "two"), ("GET", key), ("ECHO", "two more")]),
        store.run(ADD, [key], [1]),
        store.command("ECHO", "three"),
        return_exceptions=True,
    )
    assert (one, two, three) == (b"one", [b"two", b"text", b"two more"], b"three")
    assert isinstance(wrong, StoreRefused)
    assert store.available


async def test_who_gives_up_waiting_takes_nothing_from_the_others(
    server: RedisServer, stores: Stores, key: str
) -> None:
    store = stores(server.url, 5.0)
    await store.run(ADD, [key], [1])
    server.pause()
    first, second = (asyncio.create_task(store.run(ADD, [key], [1])) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0)
    server.resume()
    assert await second in (2, 3)
    assert first.cancelled()
    assert await store.command("GET", key) == b"3"


async def test_who_gives_up_hears_when_it_has_been_done(server: RedisServer, stores: Stores, key: str) -> None:
    store, told = stores(server.url, 5.0), asyncio.Event()
    await store.run(ADD, [key], [1])
    server.pause()
    task = asyncio.create_task(store.run(ADD, [key], [1], told.set))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not told.is_set()
    server.resume()
    await asyncio.wait_for(told.wait(), 5)
    assert await store.command("GET", key) == b"2"


async def test_who_gives_up_in_the_moment_of_the_answer_hears_it_too(
    redis_url: str, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = stores(redis_url), []

    async def send(asked: list[bundle.Asked]) -> None:
        for _, waiting, _ in asked:
            waiting.set_result([1])
        task.cancel()

    monkeypatch.setattr(store._bundle, "_send", send)
    task = asyncio.create_task(store.run(ADD, ["k"], [1], lambda: told.append("done")))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["done"]


async def test_what_is_given_up_before_it_is_sent_is_not_sent(redis_url: str, stores: Stores, key: str) -> None:
    store, told = stores(redis_url), []
    task = asyncio.create_task(store.run(ADD, [key], [1], lambda: told.append("done")))
    await asyncio.sleep(0)  # it has asked
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert await store.command("GET", key) is None
    assert told == []


async def test_what_is_on_its_way_at_the_end_is_given_up(server: RedisServer, stores: Stores, key: str) -> None:
    store = stores(server.url, 60.0)
    await store.run(ADD, [key], [1])
    server.pause()
    task = asyncio.create_task(store.run(ADD, [key], [1]))
    await asyncio.sleep(0.05)
    await store.aclose()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.resume()


async def test_a_command_that_blocks_keeps_no_other_waiting(redis_url: str, stores: Stores, key: str) -> None:
    store = stores(redis_url)
    async with asyncio.TaskGroup() as tasks:
        blocked = [
            tasks.create_task(store.command("BLPOP", key, 10, timeout_s=20)) for _ in range(subject.CONNECTIONS + 1)
        ]
        for number in range(len(blocked)):
            await store.command("RPUSH", key, number)
    assert sorted(int(task.result()[1]) for task in blocked) == list(range(len(blocked)))


# --- a store that is not there ------------------------------------------------------------------------------------


async def test_a_paused_redis_costs_one_time_limit_and_then_nothing(
    server: RedisServer, stores: Stores, told: Told
) -> None:
    store = stores(server.url, 0.05)
    await store.run(ADD, ["k"], [1])
    server.pause()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.run(ADD, ["k"], [1])
    assert time.monotonic() - began >= 0.05
    assert not store.available
    for _ in range(100):
        with pytest.raises(StoreUnavailable):
            _without_waiting(store)
    assert told == [(True, ""), (False, "no answer within 0.05 s")]


async def test_waiting_for_a_connection_counts_too(server: RedisServer, stores: Stores) -> None:
    store = stores(server.url, 0.2)
    server.pause()
    began = time.monotonic()
    crowd = [store.run(ADD, ["k"], [1]) for _ in range(20 * subject.CONNECTIONS)]
    answers = await asyncio.gather(*crowd, return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert time.monotonic() - began < 2 * 0.2 + 0.5


async def test_a_store_that_comes_back_is_found_by_the_watch(server: RedisServer, stores: Stores, told: Told) -> None:
    store = stores(server.url, 0.2)
    async with watched(store):
        await comes(told, (True, ""))
        server.pause()
        with pytest.raises(StoreUnavailable):
            await store.run(ADD, ["k"], [1])
        server.resume()
        await comes(told, (True, ""), times=2)
        assert await store.run(ADD, ["other"], [1]) == 1


async def test_a_restart_is_survived_and_scripts_are_sent_again(
    server: RedisServer, stores: Stores, told: Told
) -> None:
    store = stores(server.url, 1.0)
    await asyncio.gather(*[store.run(ADD, ["k"], [1]) for _ in range(5)])
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    assert await store.run(ADD, ["k"], [1]) == 1, "connections that were cut while idle are not used"
    assert told == [(True, "")]


async def test_a_stopped_redis_refuses_and_says_so_without_its_password(
    server: RedisServer, stores: Stores, told: Told
) -> None:
    server.stop()
    store = stores(server.url.replace("//", "//:very-secret@"))
    with pytest.raises(StoreUnavailable) as failed:
        await store.run(ADD, ["k"], [1])
    server.start()
    ((available, reason),) = told
    assert not available
    assert "onnect" in reason
    assert "very-secret" not in reason + repr(failed.value) + repr(failed.value.__cause__)


async def test_a_wrong_password_makes_it_unavailable(server: RedisServer, stores: Stores, told: Told) -> None:
    configure(server, "requirepass", "right")
    for wrong in (server.url, server.url.replace("//", "//:very-secret@")):
        told.clear()
        with pytest.raises(StoreUnavailable):
            await stores(wrong).command("GET", "k")
        assert [available for available, _ in told] == [False]
        assert "very-secret" not in str(told)
    assert await stores(server.url.replace("//", "//:right@")).command("GET", "k") is None


@pytest.mark.parametrize(
    ("setting", "value", "undone"), [("maxmemory", "1", "0"), ("min-replicas-to-write", "3", "0")], ids=["full", "safe"]
)
@pytest.mark.parametrize("way", ["command", "script"])
async def test_a_redis_that_takes_no_writes_is_unavailable_until_it_does(
    server: RedisServer, stores: Stores, told: Told, setting: str, value: str, undone: str, way: str
) -> None:
    store = stores(server.url)
    await store.run(ADD, ["k"], [1])
    configure(server, setting, value)
    with pytest.raises(StoreUnavailable):
        await (store.run(ADD, ["k"], [1]) if way == "script" else store.command("SET", "k", "v"))
    async with watched(store):
        await asyncio.sleep(1.2 * subject.AFTER_DOUBT_S)  # the watch has looked by now
        configure(server, setting, undone)
        await comes(told, (True, ""), times=2)
    assert [available for available, _ in told] == [True, False, True]
    assert await store.run(ADD, ["k"], [1]) == 2


async def test_a_user_who_may_run_no_script_is_told_of_once_and_not_taken_for_well(
    server: RedisServer, stores: Stores, told: Told
) -> None:
    with redis_py.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "writer", "on", ">secret", "~*", "+@all", "-@scripting")
    store = stores(server.url.replace("//", "//writer:secret@"))
    async with watched(store):
        await true(lambda: told)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.run(ADD, ["k"], [1])
            await asyncio.sleep(1.2 * subject.AFTER_DOUBT_S)
    assert [available for available, _ in told] == [False]


async def test_a_replica_is_unavailable(server: RedisServer, stores: Stores) -> None:
    store = stores(server.url)
    await store.command("REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(StoreUnavailable):
        await store.run(ADD, ["k"], [1])


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-MISCONF Redis is configured to save RDB snapshots\r\n",
        b"-ERR max number of clients reached\r\n",
        b"-MOVED 3999 127.0.0.1:6381\r\n",
        b":not a number\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$3\r\nab",
    ],
    ids=["hangs up", "loads", "cannot save", "full", "a cluster", "nonsense", "is no Redis", "stops in the middle"],
)
async def test_whatever_else_it_says_or_leaves_unsaid(stores: Stores, said: bytes) -> None:
    async def answers(command: list[bytes]) -> bytes:
        return said

    async with fake_redis(answers) as url:
        store = stores(url, 0.05)
        with pytest.raises(StoreUnavailable):
            await store.command("GET", "k")
        assert not store.available


async def test_an_error_that_repeats_the_password_is_not_repeated(stores: Stores, told: Told) -> None:
    async def answers(command: list[bytes]) -> bytes:
        return b"-ERR unknown command, with args beginning with: '%s'\r\n" % command[-1]

    async with fake_redis(answers) as url:
        store = stores(url.replace("//", "//:very%2Dsecret@"))
        with pytest.raises(StoreUnavailable):
            await store.command("GET", "k")
    assert [available for available, _ in told] == [False]
    assert "very-secret" not in str(told)


# --- connections stay clean -------------------------------------------------------------------------------------------


async def test_a_cancelled_call_leaves_no_answer_for_the_next(stores: Stores) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def answers(command: list[bytes]) -> bytes:
        if command[1] == b"first":
            asked.set()
            await may_answer.wait()
        return b"+%s\r\n" % command[1]

    async with fake_redis(answers) as url, asyncio.TaskGroup() as tasks:
        store = stores(url)
        first = tasks.create_task(store.command("GET", "first"))
        await asked.wait()
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        may_answer.set()
        assert await store.command("GET", "second") == b"second"
        assert store.available, "who hangs up says nothing about the store"


async def test_a_late_answer_is_nobodys(stores: Stores) -> None:
    may_answer = asyncio.Event()

    async def answers(command: list[bytes]) -> bytes:
        if command[1] == b"slow":
            await may_answer.wait()
        return b"+%s\r\n" % command[1]

    async with fake_redis(answers) as url:
        store = stores(url, 0.05)
        with pytest.raises(StoreUnavailable):
            await store.command("GET", "slow")
        may_answer.set()
        async with watched(store):
            await true(lambda: store.available)
        assert await store.command("GET", "quick") == b"quick"


async def test_cancelling_at_any_step_gives_the_place_back(redis_url: str, stores: Stores, key: str) -> None:
    store = stores(redis_url)
    await store.command("SET", key, 0)
    for steps in range(3 * subject.CONNECTIONS):
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(store.run(ADD, [key], [1]))
            for _ in range(steps % 24):
                await asyncio.sleep(0)
            call.cancel()
    count = int(await store.command("GET", key))
    assert await asyncio.gather(*[store.run(ADD, [key], [0]) for _ in range(100)]) == [count] * 100


async def test_an_answer_that_came_in_time_counts_though_we_were_late(redis_url: str, stores: Stores, key: str) -> None:
    store = stores(redis_url, 0.05)
    await store.run(ADD, [key], [1])
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(store.run(ADD, [key], [1]))
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251  # what a busy loop does to its timers
        assert await call == 2


async def test_a_closed_store_keeps_no_connection(server: RedisServer, stores: Stores, told: Told) -> None:
    store, observer = stores(server.url), stores(server.url)
    async with asyncio.TaskGroup() as tasks:
        late = tasks.create_task(store.command("BLPOP", "late", 10, timeout_s=20))
        await store.run(ADD, ["k"], [1])
        await store.aclose()
        await observer.command("RPUSH", "late", 1)
        await late
    clients: bytes = await observer.command("CLIENT", "LIST")
    assert clients.count(b"\n") == 1


# --- settings that can never work -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://:very-secret@h",
        "redis://h:port",
        "redis://:very-secret@h?db=x",
        "redis://h?x=1",
        "redis://:very-secret@h/first",
        "redis://",
        "redis://:p@very-secret#word@h:6379/0",  # from here on its parts would be taken for a host, a port, a database
        "redis://:p@very-secret/word@h:6379/0",
        "redis://:1?very-secret@h:6379/0",
    ],
)
def test_an_unusable_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(UnusableStore, match="REDIS_URL") as refused:
        SharedStore(url, 1, time.monotonic, lambda up, why: None)
    assert "very-secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://h:6379/", "rediss://:p@ss%23w@h:6379/2", "redis://[::1]:6379", "unix:///run/redis.sock"],
)
def test_a_url_that_may_be_meant_is_taken(url: str) -> None:
    SharedStore(url, 1, time.monotonic, lambda up, why: None)


def test_a_missing_package_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis.asyncio.connection", None)
    with pytest.raises(UnusableStore, match=r"pip install 'gllm\[redis\]'"):
        SharedStore("redis://127.0.0.1", 1, time.monotonic, lambda up, why: None)


# --- how it is watched ------------------------------------------------------------------------------------------------


class watched:  # noqa: N801
    def __init__(self, store: SharedStore) -> None:
        self._store = store

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._store.keep_watch())

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


def _without_waiting(store: SharedStore) -> Any:
    """Runs to its end in one step of the loop, or is found waiting."""
    call = store.run(ADD, ["k"], [1])
    try:
        call.send(None)
    except StopIteration as answered:
        return answered.value
    call.close()
    raise AssertionError("it waited")


def configure(server: RedisServer, setting: str, value: str) -> None:
    with redis_py.Redis.from_url(server.url) as operator:
        operator.config_set(setting, value)


async def comes(told: Told, news: tuple[bool, str], times: int = 1) -> None:
    await true(lambda: told.count(news) >= times)


async def true(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)
