"""Connections to Redis, each lent for one exchange: a write of all commands, then as many answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from app.clock import Clock

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

Part = str | bytes | int | float
"""Of a command."""
Command = Sequence[Part]
Connect = Callable[[], "AbstractConnection"]

_MEANT = (
    "REDIS_URL must be a URL like redis://:PASSWORD@HOST:6379/0; in a password '#', '/' and '?' are written as %23, "
    "%2F and %3F."
)
_DATABASE = re.compile(r"/?[0-9]*")

IDLE_S = 60.0
"""A connection unused for longer may have been cut by something in between, which says nothing about Redis."""


class UnusableStore(Exception):
    """The store can never be used as it is set. The text is for the person who starts the gateway."""


class ExchangeFailed(Exception):
    """Its cause says why. Whether Redis did what it was told is not known."""


class Pool:
    def __init__(self, size: int, connect: Connect, clock: Clock) -> None:
        self._connect = connect
        self._clock = clock
        self._places = asyncio.Semaphore(size)
        self._idle: list[tuple[AbstractConnection, float]] = []
        self._closed = False

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """An error that Redis answers with stands among the answers. A connection is kept only if all were read."""
        async with self._places:
            connection = await self._idle_one() or self._connect()
            packed = connection.pack_commands(commands)
            try:
                if not connection.is_connected:
                    await connection.connect()  # type: ignore[no-untyped-call]  # of redis-py
                await connection.send_packed_command(packed, check_health=False)
                answers = [await _answer(connection) for _ in commands]
            except BaseException as error:
                await connection.disconnect(nowait=True)
                if isinstance(error, Exception):
                    raise ExchangeFailed from error
                raise
            await self._keep(connection)
            return answers

    async def drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop()[0].disconnect(nowait=True)

    async def aclose(self) -> None:
        """Those that are lent are closed when they come back."""
        self._closed = True
        await self.drop_idle()

    async def _idle_one(self) -> AbstractConnection | None:
        while self._idle:
            connection, since = self._idle.pop()
            if self._clock() - since < IDLE_S and not _hung_up(connection):
                return connection
            await connection.disconnect(nowait=True)
        return None

    async def _keep(self, connection: AbstractConnection) -> None:
        if self._closed:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append((connection, self._clock()))


def connector(url: str) -> Connect:
    """Raises `UnusableStore`. Time limits are set by the caller, once for everything, so the connection has none."""
    try:
        from redis.asyncio.connection import Connection, parse_url
    except ImportError:
        raise UnusableStore("REDIS_URL is set, but the package for it is missing: pip install 'gllm[redis]'.") from None
    try:
        given: dict[str, Any] = dict(parse_url(url))
    except ValueError:  # its text may show the password
        raise UnusableStore(_MEANT) from None
    if _is_misread(url):
        raise UnusableStore(_MEANT)
    given.pop("max_connections", None)
    kind: type[AbstractConnection] = given.pop("connection_class", Connection)
    ours = {"socket_timeout": None, "socket_connect_timeout": None, "decode_responses": False, "protocol": 2}

    def connect() -> AbstractConnection:
        return kind(**given | ours)

    try:
        connect()
    except Exception:
        raise UnusableStore("REDIS_URL has an option that redis-py does not know.") from None
    return connect


def _is_misread(url: str) -> bool:
    """redis-py takes a database that is no number for the first, and parts of a password for a host and a port, which
    it then names in its errors."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return False
    return bool(parts.fragment) or not parts.hostname or _DATABASE.fullmatch(parts.path) is None


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except Exception as error:
        from redis.exceptions import ResponseError

        if isinstance(error, ResponseError):
            return error
        raise


def _hung_up(connection: AbstractConnection) -> bool:
    """Redis closed it while it lay here; redis-py tells only at the price of a read."""
    reader = connection._reader
    return reader is None or reader.at_eof()
