"""A server that speaks just enough of Redis' protocol to misbehave on purpose."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Answers = Callable[[list[bytes]], Awaitable[bytes]]
"""What is said to one command; empty hangs up."""

GREETINGS = (b"CLIENT", b"SELECT")


@asynccontextmanager
async def fake_redis(answers: Answers) -> AsyncIterator[str]:
    """Its URL. Connecting succeeds as it does with Redis; `answers` is asked about everything else."""
    open_ones: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        try:
            while command := await _command(reader):
                said = b"+OK\r\n" if command[0] in GREETINGS else await answers(command)
                if not said:
                    break
                writer.write(said)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            open_ones.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for writer in open_ones:
            writer.close()
        await server.wait_closed()


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    count = await reader.readline()
    if not count:
        return []
    parts = []
    for _ in range(int(count[1:])):
        size = int((await reader.readline())[1:])
        parts.append((await reader.readexactly(size + 2))[:-2])
    return parts
