"""What a request leaves behind is freed when it is over, however it ends, and not when the garbage collector comes by:
it would stop everybody, for as long as it takes to look through what thousands have left."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import app
from app.gateway.app import Gateway
from app.settings import Settings
from tests.engines.http.replica import CHUNKED, JSON, LAST_CHUNK, SSE, chunk, sized
from tests.gateway.conftest import asking
from tests.gateway.test_protocol import request
from tests.support.server import RawClient, serving
from tests.support.tenancy import signed, write_tenants
from tests.support.upstream import WELL

REQUESTS = 12
OURS = ("app", "uvicorn")
HOME = str(Path(app.__file__).parent)

EVENT = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a "}}]}\n\n'
DONE = b"data: [DONE]\n\n"
SAYS = {
    "is well": sized(json.dumps(WELL).encode()),
    "streams": SSE + CHUNKED + chunk(EVENT) + chunk(EVENT) + chunk(DONE) + LAST_CHUNK,
    "stalls": SSE + CHUNKED + chunk(EVENT),
    "breaks": SSE + CHUNKED + chunk(EVENT),
    "fails": sized(b"{}", JSON.replace(b"200 OK", b"500 No")),
    "refuses": sized(b"{}", JSON.replace(b"200 OK", b"400 No")),
    "is busy": sized(b"{}", JSON.replace(b"200 OK", b"503 No")),
    "is no HTTP": b"What?\r\n\r\n",
    "is silent": b"",
    "leaves": b"",
}
"""An engine does as the prompt says."""
CLOSES = ("breaks", "is no HTTP", "leaves")
MODELS = sized(b'{"object":"list","data":[{"id":"demo","max_model_len":2048}]}')


async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            body = await reader.readexactly(length)
            says = json.loads(body)["messages"][0]["content"] if body else ""
            writer.write(SAYS[says] if says else MODELS)
            await writer.drain()
            if says in CLOSES:
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the gateway has left
    finally:
        writer.close()


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
async def served(folder: Path, **settings: Any) -> AsyncIterator[int]:
    """Its port. It is over two engines, each of which does as it is told."""
    fixed = {"LOG_LEVEL": "error", "STATE_DIR": folder, "CIRCUIT_FAILURES": 1_000, "RETRY_BUDGET": 1.0}
    async with (
        await asyncio.start_server(obey, "127.0.0.1", 0) as one,
        await asyncio.start_server(obey, "127.0.0.1", 0) as other,
    ):
        urls = [f"http://127.0.0.1:{each.sockets[0].getsockname()[1]}" for each in (one, other)]
        loaded = Settings.load(env={}, env_file=None, ENGINE_URLS=",".join(urls), **fixed, **settings)
        async with serving(Gateway(loaded)) as port:
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
    await client.reader.readuntil(EVENT)
    client.reset()


async def says_goodbye(client: RawClient) -> None:
    """In a stream, and without haste."""
    await client.reader.readuntil(EVENT)
    client.writer.close()


SOON = "x-request-timeout-ms: 30"
KEY = "idempotency-key: {number}"
IN_LINE = {
    "no turn in time": (told("is well", SOON), answered),
    "client leaves the line": (told("is well"), leaves),
    "keyed: no turn in time": (told("is well", KEY, SOON), answered),
}
"""Where each engine is at work already, and does one thing at a time."""
ENDS = IN_LINE | {
    "answered": (told("is well"), answered),
    "streamed": (told("streams", stream=True), read_to_its_end),
    "engine fails": (told("fails"), answered),
    "engine refuses": (told("refuses"), answered),
    "engine is busy": (told("is busy"), answered),
    "engine is no HTTP": (told("is no HTTP"), answered),
    "engine leaves": (told("leaves"), answered),
    "engine breaks off": (told("breaks", stream=True), read_to_its_end),
    "too late": (told("is silent", SOON), answered),
    "too late for a stream": (told("stalls", SOON, stream=True), read_to_its_end),
    "client leaves": (told("is silent"), leaves),
    "client leaves a stream": (told("stalls", stream=True), leaves_a_stream),
    "client says goodbye": (told("stalls", stream=True), says_goodbye),
    "client leaves its body": (told("is well")[:-5], leaves),
    "unknown model": (told("is well", model="other"), answered),
    "no JSON": (request(b"{"), answered),
    "wrong method": (request(method="PUT"), answered),
    "keyed: answered": (told("is well", KEY), answered),
    "keyed: streamed": (told("streams", KEY, stream=True), read_to_its_end),
    "keyed: replayed": (told("streams", "idempotency-key: the-same", stream=True), read_to_its_end),
    "keyed: engine fails": (told("fails", KEY), answered),
    "keyed: engine breaks off": (told("breaks", KEY, stream=True), read_to_its_end),
    "keyed: too late": (told("is silent", KEY, SOON), answered),
    "keyed: client leaves a stream": (told("stalls", KEY, SOON, stream=True), leaves_a_stream),
    "no HTTP": (b"What?\r\n\r\n", answered),
    "too large": (told("is well", padding="x" * 2_000), answered),
    "too slow": (told("is well")[:-5], answered),
    "too often": (told("is well", f"authorization: {signed('one')['authorization']}"), answered),
    "a page": (request(b"", path="/v1/models", method="GET"), answered),
    "no page": (request(b"", path="/nowhere", method="GET"), answered),
}


def settings_of(end: str, folder: Path) -> dict[str, Any]:
    if end == "too often":
        tenants = folder / "tenants.toml"
        write_tenants(tenants, {"one": {"requests_per_minute": 1}})
        return {"TENANTS_FILE": tenants}
    if end in IN_LINE:
        return {"MAX_CONCURRENT_REQUESTS": 1}
    return {"MAX_BODY_BYTES": 1_024, "BODY_TIMEOUT": 0.05}


def of_ours() -> Counter[str]:
    """What requests have left: of each kind more than what happens once."""
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.garbage:
        if isinstance(each, FrameType):
            if each.f_code.co_filename.startswith(HOME):
                found[f"frame of {each.f_code.co_qualname}"] += 1
        elif isinstance(each, BaseException) or type(each).__module__.partition(".")[0] in OURS:
            found[type(each).__qualname__] += 1
    return Counter({kind: n for kind, n in found.items() if n >= REQUESTS / 2})


@pytest.mark.parametrize("end", ENDS)
async def test_a_request_is_no_work_for_the_garbage_collector(tmp_path: Path, kept: None, end: str) -> None:
    said, then = ENDS[end]
    async with served(tmp_path, **settings_of(end, tmp_path)) as port, AsyncExitStack() as others:
        if end in IN_LINE:
            for _ in range(2):
                other = await others.enter_async_context(RawClient.to(port))
                await other.say(told("stalls", stream=True))
                await other.reader.readuntil(EVENT)
        for number in range(REQUESTS):
            async with RawClient.to(port) as client:
                await client.say(said.replace(b"{number}", b"%d" % number))
                await then(client)
        await asyncio.sleep(0.1)
        garbage = of_ours()
    assert garbage == {}
