"""The connections to one engine: the busy ones, and the idle ones, of which the last used is the next."""

import asyncio
from collections import deque
from contextlib import suppress

from app.clock import Clock
from app.engines.http.address import Address
from app.engines.http.connection import Connection
from app.engines.http.limits import Limits
from app.engines.http.shortage import is_ours
from app.errors import EngineOutOfReach, EngineUnreachable


class Pool:
    def __init__(self, address: Address, limits: Limits, clock: Clock) -> None:
        self._address = address
        self._limits = limits
        self._clock = clock
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._closed = False

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    def take(self) -> Connection | None:
        """An idle connection that is not known to be closed, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.alive:
                continue
            if self._clock() - connection.idle_since < self._limits.idle_keepalive_s:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        tls = self._address.tls
        connection = Connection(self._limits.max_header_bytes, on_lost=self._forget)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                self._address.host,
                self._address.port,
                ssl=tls,
                server_hostname=self._address.host if tls else None,
            )
        except OSError as error:  # ssl's and the resolver's errors are OSErrors too
            if is_ours(error):
                raise EngineOutOfReach(retry_after=1.0, detail=str(error)) from error
            raise EngineUnreachable(detail=str(error)) from error
        if connection.open:
            self._open.add(connection)
        return connection

    def give_back(self, connection: Connection) -> bool:
        """Keep it for the next request. False: it cannot be kept, and is still the caller's to close."""
        if self._closed or not connection.reusable:
            return False
        connection.clear()
        now = connection.idle_since = self._clock()
        self._idle.append(connection)
        while len(self._idle) > self._limits.max_idle or (
            now - self._idle[0].idle_since >= self._limits.idle_keepalive_s
        ):
            self._idle.popleft().abort()
        return True

    async def aclose(self) -> None:
        self._closed = True
        connections = list(self._open)
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.aclose()

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)
