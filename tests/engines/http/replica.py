"""A TCP server that plays scripts, and the values that tests of the HTTP engine share."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from pathlib import Path

from app.engines.base import flow
from app.engines.http import HttpEngine
from app.errors import GatewayError
from app.generation import Call, Route


class Do(Enum):
    REQUEST = auto()
    """Read one whole request."""
    HEAD = auto()
    """Read a request's head, and leave its body alone."""
    PAUSE = auto()
    """Wait for the test to say `go_on`."""
    END = auto()
    """Half-close: nothing more will be written."""
    RESET = auto()
    """Close with a TCP reset."""
    UNTIL_CLOSED = auto()
    """Wait until the client has closed."""


@dataclass(frozen=True)
class Drip:
    """Each byte in a packet of its own."""

    data: bytes


Step = Do | Drip | bytes
Script = Sequence[Step]


@dataclass
class Replica:
    """Each connection plays the next script, and the last script is played again and again."""

    scripts: list[Script] = field(default_factory=list)
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    accepted: int = 0
    closed_by_client: int = 0
    _go: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    _players: set[asyncio.Task[None]] = field(default_factory=set)

    def plays(self, *script: Step) -> None:
        self.scripts = [script]

    def go_on(self) -> None:
        """One script gets past its pause: the one that waits there, or else the next to come there."""
        self._go.release()

    @property
    def playing(self) -> int:
        """Connections whose script has not ended."""
        return len(self._players)

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator["Replica"]:
        server = await asyncio.start_server(self._accept, host, 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for player in self._players:
                player.cancel()
            await asyncio.gather(*self._players, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._players.add(task)
        script = self.scripts[min(self.accepted, len(self.scripts) - 1)]
        self.accepted += 1
        try:
            for step in script:
                if writer.is_closing():
                    raise ConnectionResetError
                await self._play(step, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed_by_client += 1
        except asyncio.CancelledError:
            pass  # streams would complain about a handler that was cancelled
        finally:
            self._players.discard(task)
            writer.transport.abort() if Do.RESET in script else writer.close()

    async def _play(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match step:
            case bytes():
                writer.write(step)
                await writer.drain()
                await turns(2)
            case Drip(data):
                for at in range(len(data)):
                    if writer.is_closing():
                        raise ConnectionResetError
                    writer.write(data[at : at + 1])
                    await turns(2)
            case Do.REQUEST | Do.HEAD:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                body = b"" if step is Do.HEAD else await reader.readexactly(length)
                self.requests.append(head + body)
            case Do.PAUSE:
                await self._go.acquire()
            case Do.END:
                writer.write_eof()
            case Do.RESET:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case Do.UNTIL_CLOSED:
                while await reader.read(65_536):
                    pass
                raise ConnectionResetError


async def turns(count: int) -> None:
    """Let the event loop turn, sockets included."""
    for _ in range(count):
        await asyncio.sleep(0)


def open_sockets() -> int:
    return sum(_is_socket(path) for path in Path("/proc/self/fd").iterdir())


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except FileNotFoundError:  # the listing itself
        return False


# --- what is asked ------------------------------------------------------------------------------------------------


def a_call(*, stream: bool = False, body: bytes = b'{"model":"demo"}', expires_at: float = 1_000.0) -> Call:
    return Call(id="req-1", route=Route.CHAT, model="demo", body=body, expires_at=expires_at, stream=stream)


class Reading(StrEnum):
    """How answers are read here: each of both ways gets the same blocks, and the same errors."""

    BY_BLOCK = "by block"
    FLOWING = "flowing"


reading = Reading.BY_BLOCK
"""Set for each test by `conftest`."""


async def answer_of(engine: HttpEngine, call: Call) -> list[bytes]:
    blocks: list[bytes] = []
    await _read(engine, call, blocks)
    return blocks


async def _read(engine: HttpEngine, call: Call, blocks: list[bytes]) -> None:
    def pass_on(block: bytes) -> bool:
        """Every third time it has enough for now."""
        blocks.append(block)
        return len(blocks) % 3 > 0

    async with engine.open(call) as exchange:
        if call.stream and reading is Reading.FLOWING:
            while await flow(exchange, pass_on):
                await turns(1)
        else:
            async for block in exchange:
                blocks.append(block)  # noqa: PERF401 - a comprehension would lose them


async def failure_of(engine: HttpEngine, call: Call) -> tuple[list[bytes], GatewayError]:
    """The blocks that came, and the error that ended them."""
    blocks: list[bytes] = []
    try:
        await _read(engine, call, blocks)
    except GatewayError as error:
        return blocks, error
    raise AssertionError(f"it did not fail, but gave {blocks}")


# --- what is answered ---------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
JSON = OK + b"content-type: application/json\r\n"
SSE = OK + b"content-type: text/event-stream; charset=utf-8\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def sized(body: bytes, head: bytes = JSON) -> bytes:
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*events: bytes) -> bytes:
    return SSE + CHUNKED + b"".join(map(chunk, events)) + LAST_CHUNK


def an_event(word: str) -> bytes:
    return f"data: {word}\n\n".encode()
