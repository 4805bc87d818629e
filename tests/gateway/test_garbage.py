"""What a request leaves behind is freed when it is over, however it ends, and not when the garbage collector comes by:
it would stop everybody, for as long as it takes to look through what thousands have left."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from secrets import token_hex
from types import FrameType
from typing import Any

import pytest

import app
from app.errors import Outcome
from app.gateway.app import Gateway
from app.settings import Settings
from app.telemetry.base import Backend
from app.telemetry.record import Record
from tests.engines.http.replica import CHUNKED, JSON, LAST_CHUNK, SSE, chunk, sized
from tests.gateway.conftest import asking
from tests.gateway.test_protocol import request
from tests.support.redis_server import redis_server
from tests.support.server import RawClient, serving
from tests.support.tenancy import signed, write_tenants
from tests.support.upstream import WELL

REQUESTS = 12
TENANTS = {"much": {"requests_per_minute": 1_000, "concurrent": 100}, "little": {"requests_per_minute": 1}}
OURS = ("app", "uvicorn")
HOME = str(Path(app.__file__).parent)

CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "demo"}


def event(content: str, tokens: int, finish: str | None = None) -> bytes:
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({**CHUNK, "choices": [choice], "usage": usage}).encode()


EVENT, LAST, DONE = event("a ", 1), event("b ", 2, "stop"), b"data: [DONE]\n\n"
BEGUN = SSE + CHUNKED + chunk(EVENT)
STREAM = BEGUN + chunk(LAST) + chunk(DONE) + LAST_CHUNK
FAILS = sized(b"{}", JSON.replace(b"200 OK", b"500 No"))
SAYS = {
    "is well": sized(json.dumps(WELL).encode()),
    "streams": STREAM,
    "stalls": BEGUN,
    "breaks": BEGUN,
    "fails": FAILS,
    "refuses": sized(b"{}", JSON.replace(b"200 OK", b"400 No")),
    "is busy": sized(b"{}", JSON.replace(b"200 OK", b"503 No")),
    "is no HTTP": b"What?\r\n\r\n",
    "is silent": b"",
    "leaves": b"",
    "floods": BEGUN + chunk(event("a " * 16_000, 1)) * 1_000,
}
"""An engine does as the prompt says."""
IN_TURN = {
    "dawdles": ((0.5, STREAM), (0.0, STREAM)),
    "dawdles, and then all fail": ((0.2, FAILS), (0.0, FAILS)),
    "dies": ((0.0, BEGUN), (0.0, STREAM)),
}
"""One thing where a call is tried first, and another where it is tried next: after so long, this."""
CLOSES = ("breaks", "is no HTTP", "leaves")
MODELS = sized(b'{"object":"list","data":[{"id":"demo","max_model_len":2048}]}')


@dataclass
class Engines:
    """Two, on ports of their own."""

    asked: Iterator[int] = field(default_factory=count)

    async def obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                body = await reader.readexactly(length)
                does = json.loads(body)["messages"][0]["content"] if body else ""
                tried_next = does in IN_TURN and next(self.asked) % 2
                after_s, says = IN_TURN[does][tried_next] if does in IN_TURN else (0.0, SAYS.get(does, MODELS))
                await asyncio.sleep(after_s)
                writer.write(says)
                await writer.drain()
                if does in CLOSES or (does == "dies" and not tried_next):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway has left
        finally:
            writer.close()


class Ends(Backend):
    """How requests have ended."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.tried_twice = 0

    def ended(self, record: Record) -> None:
        self.outcomes[record.outcome] += 1
        self.tried_twice += len(record.tries) > 1


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """What was there before the tests is set aside until after the last of them: to look through it takes long."""
    yield
    gc.unfreeze()


@pytest.fixture
def kept(frozen: None) -> Iterator[None]:
    """What only the collector would free is kept, to be looked at; but for what was there before."""
    gc.collect()
    gc.freeze()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@asynccontextmanager
async def served(folder: Path, ends: Ends, **settings: Any) -> AsyncIterator[int]:
    """Its port. It is over two engines, each of which does as it is told."""
    fixed = {"LOG_LEVEL": "error", "STATE_DIR": folder, "CIRCUIT_FAILURES": 1_000, "RETRY_BUDGET": 1.0}
    engines = Engines()
    async with (
        await asyncio.start_server(engines.obey, "127.0.0.1", 0) as one,
        await asyncio.start_server(engines.obey, "127.0.0.1", 0) as other,
    ):
        urls = [f"http://127.0.0.1:{each.sockets[0].getsockname()[1]}" for each in (one, other)]
        loaded = Settings.load(env={}, env_file=None, ENGINE_URLS=",".join(urls), **fixed, **settings)
        async with serving(Gateway(loaded, backends=[ends])) as port:
            yield port


def told(engine: str, *headers: str, stream: bool = False, **fields: Any) -> bytes:
    """A request for which the engine does this."""
    body = asking(messages=[{"role": "user", "content": engine}], stream=stream, **fields)
    return request(json.dumps(body).encode(), *headers)


async def answered(client: RawClient) -> None:
    await client.answer()


async def read_to_its_end(client: RawClient) -> None:
    await client.reader.readuntil(LAST_CHUNK)


async def leaves(client: RawClient) -> None:
    """At once."""
    client.reset()


async def leaves_a_stream(client: RawClient) -> None:
    await client.reader.readuntil(b"data: ")
    client.reset()


async def says_goodbye(client: RawClient) -> None:
    """In a stream, and without haste."""
    await client.reader.readuntil(b"data: ")
    client.writer.close()


async def stops_reading(client: RawClient) -> None:
    """For longer than it may."""
    await client.reader.readuntil(b"data: ")
    await asyncio.sleep(0.2)


@dataclass(frozen=True)
class End:
    said: bytes
    then: Callable[[RawClient], Awaitable[None]]
    outcome: Outcome | None = Outcome.OK
    """`None`: it never became a request."""
    settings: dict[str, Any] = field(default_factory=dict)


def signed_by(tenant: str) -> str:
    return f"authorization: {signed(tenant)['authorization']}"


SOON = "x-request-timeout-ms: 30"
KEY = "idempotency-key: {number}"
ONE_AT_A_TIME = {"MAX_CONCURRENT_REQUESTS": 1}
EXACT = {"EXACT_USAGE": True}
HEDGED = {"HEDGE_SHARE": 0.2}
ENDS = {
    "answered": End(told("is well"), answered),
    "streamed": End(told("streams", stream=True), read_to_its_end),
    "engine fails": End(told("fails"), answered, Outcome.UPSTREAM_FAILED),
    "engine refuses": End(told("refuses"), answered, Outcome.CLIENT_ERROR),
    "engine is busy": End(told("is busy"), answered, Outcome.QUEUE_FULL),
    "engine is no HTTP": End(told("is no HTTP"), answered, Outcome.UPSTREAM_FAILED),
    "engine leaves": End(told("leaves"), answered, Outcome.UPSTREAM_FAILED),
    "engine breaks off": End(told("breaks", stream=True), read_to_its_end, Outcome.INTERRUPTED),
    "engine dies, and another goes on": End(told("dies", stream=True), read_to_its_end, settings=EXACT),
    "slow to begin, and another is faster": End(told("dawdles", stream=True), read_to_its_end, settings=HEDGED),
    "slow to begin, and all fail": End(
        told("dawdles, and then all fail", stream=True), answered, Outcome.UPSTREAM_FAILED, HEDGED
    ),
    "too late": End(told("is silent", SOON), answered, Outcome.DEADLINE),
    "too late for a stream": End(told("stalls", SOON, stream=True), read_to_its_end, Outcome.DEADLINE),
    "client leaves": End(told("is silent"), leaves, Outcome.CLIENT_GONE),
    "client leaves a stream": End(told("stalls", stream=True), leaves_a_stream, Outcome.CLIENT_GONE),
    "client says goodbye": End(told("stalls", stream=True), says_goodbye, Outcome.CLIENT_GONE),
    "client leaves its body": End(told("is well")[:-5], leaves, Outcome.CLIENT_GONE),
    "client stops reading": End(
        told("floods", stream=True), stops_reading, Outcome.CLIENT_GONE, {"WRITE_TIMEOUT": 0.05}
    ),
    "client leaves the line": End(told("is well"), leaves, Outcome.CLIENT_GONE, ONE_AT_A_TIME),
    "no turn in time": End(told("is well", SOON), answered, Outcome.DEADLINE, ONE_AT_A_TIME),
    "unknown model": End(told("is well", model="other"), answered, Outcome.CLIENT_ERROR),
    "no JSON": End(request(b"{"), answered, Outcome.CLIENT_ERROR),
    "no HTTP": End(b"What?\r\n\r\n", answered, None),
    "wrong method": End(request(method="PUT"), answered, Outcome.CLIENT_ERROR),
    "too large": End(told("is well", padding="x" * 2_000), answered, Outcome.CLIENT_ERROR, {"MAX_BODY_BYTES": 1_024}),
    "too slow": End(told("is well")[:-5], answered, Outcome.CLIENT_ERROR, {"BODY_TIMEOUT": 0.05}),
    "limited: answered": End(told("is well", signed_by("much")), answered),
    "limited: too often": End(told("is well", signed_by("little")), answered, Outcome.RATE_LIMITED),
    "limited: client leaves": End(told("is silent", signed_by("much")), leaves, Outcome.CLIENT_GONE),
    "keyed: answered": End(told("is well", KEY), answered),
    "keyed: streamed": End(told("streams", KEY, stream=True), read_to_its_end),
    "keyed: replayed": End(told("streams", "idempotency-key: the-same", stream=True), read_to_its_end),
    "keyed: engine fails": End(told("fails", KEY), answered, Outcome.UPSTREAM_FAILED),
    "keyed: engine breaks off": End(told("breaks", KEY, stream=True), read_to_its_end, Outcome.INTERRUPTED),
    "keyed: too late": End(told("is silent", KEY, SOON), answered, Outcome.DEADLINE),
    "keyed: no turn in time": End(told("is well", KEY, SOON), answered, Outcome.DEADLINE, ONE_AT_A_TIME),
    "keyed: client leaves a stream": End(told("stalls", KEY, SOON, stream=True), leaves_a_stream, Outcome.CLIENT_GONE),
    "a page": End(request(b"", path="/v1/models", method="GET"), answered),
    "no page": End(request(b"", path="/nowhere", method="GET"), answered, Outcome.CLIENT_ERROR),
}


TRIED_TWICE = [end for end in ENDS if ", and " in end]


def of_ours() -> Counter[str]:
    """What requests have left: of each kind more than what happens once."""
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.garbage:
        if isinstance(each, FrameType):
            if each.f_code.co_filename.startswith(HOME):
                found[f"frame of {each.f_code.co_qualname}"] += 1
        elif isinstance(each, asyncio.CancelledError) or type(each).__module__.partition(".")[0] in OURS:
            found[type(each).__qualname__] += 1
    return Counter({kind: n for kind, n in found.items() if n >= REQUESTS / 2})


async def ask(port: int, end: End) -> None:
    keys = token_hex(4)
    for number in range(REQUESTS):
        async with RawClient.to(port) as client:
            await client.say(end.said.replace(b"{number}", f"{keys}-{number}".encode()))
            await end.then(client)


async def stream(port: int, number: int) -> None:
    for _ in range(number):
        async with RawClient.to(port) as client:
            await client.say(told("streams", stream=True))
            await read_to_its_end(client)


async def assert_nothing_is_left(folder: Path, end: End, **settings: Any) -> Ends:
    ends = Ends()
    if b"authorization" in end.said:
        settings["TENANTS_FILE"] = folder / "tenants.toml"
        write_tenants(settings["TENANTS_FILE"], TENANTS)
    async with served(folder, ends, **end.settings, **settings) as port, AsyncExitStack() as others:
        if end.settings is HEDGED:
            await stream(port, 80)  # now it is known what is slow
        if end.settings is ONE_AT_A_TIME:
            for _ in range(2):  # each engine has something to do
                other = await others.enter_async_context(RawClient.to(port))
                await other.say(told("stalls", stream=True))
                await other.reader.readuntil(b"data: ")
        before = ends.outcomes.copy()
        await ask(port, end)
        await asyncio.sleep(0.1)
        assert of_ours() == {}
        ended = ends.outcomes - before
        assert not ended if end.outcome is None else ended[end.outcome] >= REQUESTS - 1
    return ends


@pytest.mark.parametrize("end", ENDS)
async def test_a_request_is_no_work_for_the_garbage_collector(tmp_path: Path, kept: None, end: str) -> None:
    ends = await assert_nothing_is_left(tmp_path, ENDS[end])
    if end in TRIED_TWICE:
        assert ends.tried_twice >= REQUESTS


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.url


@pytest.mark.parametrize("end", [end for end in ENDS if end.startswith(("keyed", "limited"))])
async def test_nor_is_one_whose_limits_and_keys_are_in_redis(tmp_path: Path, shared: str, kept: None, end: str) -> None:
    await assert_nothing_is_left(tmp_path, ENDS[end], REDIS_URL=shared)
