"""A worker over HTTP: its real control API in front of a scripted worker, and what else may answer at an address."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.cluster.control import Adapter, Order, WorkerState
from app.cluster.remote import ATTEMPTS, MOST_BYTES, RemoteWorker
from app.cluster.worker.server import create_app, serving
from app.errors import (
    ClusterError,
    LoadFailed,
    LoadInProgress,
    NotOffered,
    NotReleased,
    UnknownAdapter,
    WorkerRefused,
    WorkerUnreachable,
)
from tests.support.workers import TAIL, ScriptedWorker

SECRET = "the cluster's own"


@asynccontextmanager
async def reached(app: Any, secret: str | None = SECRET, answer_s: float = 2.0) -> AsyncIterator[RemoteWorker]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with serving(app, listening):
            remote = RemoteWorker(f"http://127.0.0.1:{listening.getsockname()[1]}", secret, answer_s=answer_s)
            try:
                yield remote
            finally:
                await remote.aclose()


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker("w1", "demo") as worker:
        yield worker


@pytest.fixture
async def remote(worker: ScriptedWorker) -> AsyncIterator[RemoteWorker]:
    async with reached(create_app(worker, secret=SECRET, drain_s=7.0)) as remote:
        yield remote


async def test_it_is_what_the_worker_is(worker: ScriptedWorker, remote: RemoteWorker) -> None:
    assert remote.name == remote.address
    assert await remote.status() == worker.now
    assert remote.name == "w1"
    assert await remote.drain() == worker.now
    assert worker.now.state is WorkerState.DRAINING
    assert await remote.admit() == worker.now
    assert (await remote.release(drain_s=0.0)).proved
    order = Order(model="/models/next", names=("a", "b"), args=("--x", ""), id="all-1")
    status = await remote.load(order, drain_s=0.0)
    assert (status.order, worker.loads) == (order, [order])


async def test_an_order_without_words_of_its_own_leaves_them_to_the_worker(
    worker: ScriptedWorker, remote: RemoteWorker
) -> None:
    await remote.load(Order(model="next"), drain_s=1.0, force=True)
    assert worker.loads == [Order(model="next")]


async def test_a_look_waits_for_news(worker: ScriptedWorker, remote: RemoteWorker) -> None:
    first = await remote.status()
    assert await remote.status(first.version, 0.05) == first
    worker.becomes(reason="news")
    assert (await remote.status(first.version, 30.0)).reason == "news"


async def test_adapters_come_and_go(worker: ScriptedWorker, remote: RemoteWorker) -> None:
    adapter = Adapter(name="org/tuned", path="/a b")
    assert (await remote.put_adapter(adapter)).adapters == (adapter,)
    assert (await remote.drop_adapter("org/tuned")).adapters == ()
    with pytest.raises(UnknownAdapter):
        await remote.drop_adapter("org/tuned")


async def test_its_log_is_read(remote: RemoteWorker) -> None:
    assert b"".join([block async for block in remote.logs(1)]) == f"{TAIL[-1]}\n".encode()
    assert b"".join([block async for block in remote.logs(9, follow=True)]).count(b"\n") == 2


@pytest.mark.parametrize(
    "error",
    [
        LoadInProgress("It loads.", retry_after=5),
        LoadFailed("No such path.", param="model_path"),
        NotOffered("No adapters here."),
        NotReleased("8 GiB are still taken."),
    ],
)
async def test_errors_are_the_same_on_both_sides(
    worker: ScriptedWorker, remote: RemoteWorker, error: ClusterError
) -> None:
    worker.away = error
    with pytest.raises(type(error)) as caught:
        await remote.load(Order(model="next"), drain_s=0.0)
    assert (caught.value.message, caught.value.param) == (error.message, error.param)


@pytest.mark.parametrize("secret", [None, "another"])
async def test_another_secret_is_refused_in_our_words(worker: ScriptedWorker, secret: str | None) -> None:
    async with reached(create_app(worker, secret=SECRET, drain_s=1.0), secret) as remote:
        for asked in (remote.status, remote.drain):
            with pytest.raises(WorkerRefused, match="another CLUSTER_SECRET") as caught:
                await asked()
            assert "another'" not in caught.value.message
        with pytest.raises(WorkerRefused):
            await anext(remote.logs(1))


App = Callable[[Any, Any, Any], Awaitable[None]]


def says(status: int, body: bytes, **headers: str) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        head = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>hello</html>"),
        (200, b"{}"),
        (200, b'{"name":"w1","life":"x","version":0,"state":"dancing","engine":"x"}'),
        (200, b"[" * 100_000),
        (200, b"\xff"),
        (200, b" " * (MOST_BYTES + 1)),
        (404, b"not found"),
        (404, b'{"error":{"message":"no","type":"x","param":null,"code":"not_found"}}'),
        (302, b""),
        (500, b'{"error":"no"}'),
        (503, b""),
    ],
)
async def test_what_is_no_worker_is_refused(status: int, body: bytes) -> None:
    async with reached(says(status, body, location="http://127.0.0.1:9/status")) as remote:
        with pytest.raises(WorkerRefused):
            await remote.status()
        with pytest.raises(WorkerRefused):
            await remote.drain()


async def test_a_word_that_may_not_have_been_heard_is_said_again_and_one_that_was_not_answered_in_time_is_not() -> None:
    asked: list[str] = []

    async def breaks_off(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        raise OSError

    async with reached(breaks_off) as remote:
        with pytest.raises(WorkerRefused):  # its server says 500
            await remote.drain()
    nobody = RemoteWorker("http://127.0.0.1:9", None)
    began: list[int] = []
    ask = nobody._ask

    async def counted(*what: Any, **how: Any) -> Any:
        began.append(1)
        return await ask(*what, **how)

    nobody._ask = counted  # type: ignore[method-assign]
    with pytest.raises(WorkerUnreachable, match=r"127\.0\.0\.1:9 cannot be reached"):
        await nobody.drain()
    assert len(began) == ATTEMPTS
    with pytest.raises(WorkerUnreachable):
        await nobody.status()
    await nobody.aclose()


async def test_one_that_does_not_answer_holds_nobody_up(worker: ScriptedWorker) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with reached(silent, answer_s=0.1) as remote:
        with pytest.raises(WorkerUnreachable, match="did not answer in time"):
            await remote.status()
        with pytest.raises(WorkerUnreachable, match="did not answer in time"):
            await remote.drain()


async def test_proxies_of_the_environment_are_not_asked(
    worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with reached(create_app(worker, secret=SECRET, drain_s=1.0)) as remote:
        assert (await remote.status()).name == "w1"
