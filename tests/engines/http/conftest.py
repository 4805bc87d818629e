import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import trustme
import uvloop

from app.engines.http import HttpEngine, Limits, Timeouts
from app.reliability.watch import Watch
from tests.engines.http import replica as scripts
from tests.engines.http.replica import Reading, Replica, open_sockets, turns
from tests.support.clock import FakeClock

TOO_LONG_S = 30.0
"""No test waits on the wall clock; one that still runs after this hangs."""


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=Reading, autouse=True)
def _reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "reading", request.param)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(now=100.0)


@pytest.fixture
def watch(clock: FakeClock) -> Watch:
    return Watch(clock)


@pytest.fixture
def timeouts() -> Timeouts:
    return Timeouts(connect_s=8, first_byte_s=10, idle_s=5)


@pytest.fixture
def limits() -> Limits:
    return Limits(max_header_bytes=4_096, max_event_bytes=64 * 1024, max_answer_bytes=1024 * 1024)


@pytest.fixture
async def nothing_left(watch: Watch) -> AsyncIterator[None]:
    """No task, no open socket, no watched wait and no complaint of the event loop outlives the test."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    await turns(2)
    sockets = open_sockets()
    guard = loop.call_later(TOO_LONG_S, lambda: [task.cancel() for task in asyncio.all_tasks()])
    yield
    guard.cancel()
    me = {asyncio.current_task()}
    for step in range(400):
        if open_sockets() <= sockets and asyncio.all_tasks() == me:
            break
        await asyncio.sleep(0 if step < 200 else 0.01)  # a socket of another thread takes what it takes
    assert open_sockets() <= sockets
    assert asyncio.all_tasks() == me
    assert len(watch) == 0
    assert complaints == []


@pytest.fixture
async def replica(nothing_left: None) -> AsyncIterator[Replica]:
    async with Replica().listening() as replica:
        yield replica


@pytest.fixture
async def engine(replica: Replica, watch: Watch, timeouts: Timeouts, limits: Limits) -> AsyncIterator[HttpEngine]:
    engine = HttpEngine(f"http://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts, limits=limits)
    yield engine
    assert engine.open_connections == engine.idle_connections, "an exchange has left its connection open"
    assert len(watch) == 0, "an exchange has left itself in the watch"
    await engine.aclose()
    assert engine.open_connections == 0


# --- https --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system trusts the test's authority."""
    with authority.cert_pem.tempfile() as path:
        monkeypatch.setenv("SSL_CERT_FILE", path)
        yield


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    return _serving(authority, "127.0.0.1")


@pytest.fixture(scope="session")
def stranger_tls(authority: trustme.CA) -> ssl.SSLContext:
    return _serving(authority, "another.example")


def _serving(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context
