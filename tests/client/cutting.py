"""Something on the way to a server that cuts connections: a proxy that has had enough after so many events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Cutting:
    port: int = 0
    after: list[int] = field(default_factory=list)
    """For each stream to come: how many of its events are let through. Those beyond are left alone."""
    cuts: int = 0

    @asynccontextmanager
    async def before(self, server_port: int) -> AsyncIterator["Cutting"]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", server_port)
                ways = [
                    asyncio.create_task(_pass_on(reader, up_writer)),
                    asyncio.create_task(self._bring_back(up_reader, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
                    for each in (writer, up_writer):
                        each.transport.abort()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _bring_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left: int | None = None
        while data := await reader.read(65_536):
            if b"text/event-stream" in data:
                left = self.after.pop(0) if self.after else None
            if left is not None:
                *whole, _ = data.split(b"\n\n")
                if len(whole) > left or left == 0:
                    writer.write(b"".join(one + b"\n\n" for one in whole[:left]))
                    await writer.drain()
                    self.cuts += 1
                    writer.close()
                    await writer.wait_closed()
                    return
                left -= len(whole)
            writer.write(data)
            await writer.drain()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
