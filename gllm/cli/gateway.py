"""The gateway as an operator asks it: all paths and shapes that commands need; what can go wrong, as sentences."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from app.cluster.control import Adapter, Released, Status
from app.cluster.progress import Account
from app.settings.values import is_loopback
from app.telemetry.explanation import Explanation, Requests

T = TypeVar("T")

WITHIN_S = 15.0
SILENCE_S = 60.0
"""However long a model loads, its gateway says every quarter of this that it goes on."""
UNTIL_RELEASED_S = 600.0
"""Running answers come to their end first."""


class NoAnswer(Exception):
    """The text is a sentence for the person who asked."""

    def __init__(self, sentence: str, code: str = "", tail: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.code = code
        """The gateway's word for it."""
        self.tail = tail
        """An engine's own last lines, where it is about one."""


class Unreachable(NoAnswer):
    """Nobody is there, or it went away in the middle."""


class Member(Status, frozen=True, kw_only=True, omit_defaults=True):
    """A worker as the gateway knows it."""

    address: str = ""
    reachable: bool = True
    running: int | None = None
    """Calls of this gateway; of so many at once:"""
    slots: int | None = None
    since_s: float | None = None
    """For how long it has been in its state."""


class Members(msgspec.Struct, frozen=True):
    workers: tuple[Member, ...]


class Load(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model that is to be served, and by whom."""

    model: str
    names: tuple[str, ...] = ()
    args: tuple[str, ...] | None = None
    workers: tuple[str, ...] = ()
    count: int | None = None
    force: bool = False
    drain_s: float | None = None


class News(msgspec.Struct, frozen=True, kw_only=True):
    """Of a load: how far one worker is; and at last how it ended."""

    state: str
    """`running`, and at last `done` or `failed`."""
    worker: str = ""
    step: str = ""
    """As its progress says it; and `waiting`, `skipped`, `ready`, `failed`, `returned`, `left`."""
    part: float | None = None
    said: str = ""
    message: str = ""
    tail: tuple[str, ...] = ()


class Gateway:
    """An `async with` block around its connections."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=WITHIN_S,
            trust_env=not is_loopback(httpx.URL(url).host),  # no proxy stands before this machine itself
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._http.aclose()

    # --- looking --------------------------------------------------------------------------------------------------

    async def workers(self) -> tuple[Member, ...]:
        return (await self._asked("GET", "/admin/workers", Members)).workers

    @asynccontextmanager
    async def logs(self, worker: str, lines: int, *, follow: bool) -> AsyncIterator[AsyncIterator[bytes]]:
        params = {"lines": lines, "follow": int(follow)}
        silent_s = None if follow else WITHIN_S
        async with self._stream("GET", f"{_path(worker)}/logs", "text/plain", silent_s, params=params) as answer:
            yield answer.aiter_bytes()

    async def requests(self, limit: int, **filters: str) -> Requests:
        return await self._asked("GET", "/admin/requests", Requests, params={"limit": limit, **filters})

    async def request(self, request_id: str) -> Explanation:
        return await self._asked("GET", f"/admin/requests/{quote(request_id, safe='')}", Explanation)

    # --- changing -------------------------------------------------------------------------------------------------

    async def load(self, wanted: Load) -> AsyncIterator[News]:
        """News until it is done or has failed. Whoever stops listening does not stop it."""
        order = msgspec.to_builtins(wanted)
        async with self._stream("POST", "/admin/models", "text/event-stream", SILENCE_S, json=order) as answer:
            async for data in _events(answer.aiter_bytes()):
                news = self._read(data, News)
                if news.state == "failed":
                    raise NoAnswer(news.message, "load_failed", news.tail)
                if news.state == "done":
                    return
                yield news
        raise Unreachable(f"The gateway at {self.url} broke off in the middle of its answer.")

    async def cancel(self) -> Account:
        """When what was being loaded is over, and its workers serve again what they did."""
        return await self._asked("DELETE", "/admin/swap", Account, timeout=UNTIL_RELEASED_S)

    async def release(self, worker: str, drain_s: float | None) -> Released:
        body = {} if drain_s is None else {"drain_s": drain_s}
        return await self._asked("POST", f"{_path(worker)}/release", Released, json=body, timeout=UNTIL_RELEASED_S)

    async def drain(self, worker: str) -> Status:
        return await self._asked("POST", f"{_path(worker)}/drain", Status)

    async def admit(self, worker: str) -> Status:
        return await self._asked("POST", f"{_path(worker)}/admit", Status)

    async def put_adapter(self, adapter: Adapter) -> None:
        await self._asked("POST", "/admin/adapters", Any, json=msgspec.to_builtins(adapter), timeout=UNTIL_RELEASED_S)

    async def drop_adapter(self, name: str) -> None:
        await self._asked("DELETE", f"/admin/adapters/{quote(name, safe='')}", Any, timeout=UNTIL_RELEASED_S)

    # --- the wire -------------------------------------------------------------------------------------------------

    async def _asked(self, method: str, path: str, kind: type[T] | Any, **more: Any) -> T:
        try:
            answer = await self._http.request(method, path, **more)
        except httpx.RequestError as error:
            raise self._lost(error) from None
        self._check(answer.status_code, answer.content)
        found: T = self._read(answer.content, kind)
        return found

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, kind: str, silent_s: float | None, **more: Any
    ) -> AsyncIterator[httpx.Response]:
        """`silent_s`: what may pass between two pieces."""
        patience, headers = httpx.Timeout(WITHIN_S, read=silent_s), {"accept": kind}
        try:
            async with self._http.stream(method, path, timeout=patience, headers=headers, **more) as answer:
                if not answer.is_success:
                    self._check(answer.status_code, await answer.aread())
                if not answer.headers.get("content-type", "").startswith(kind):
                    raise self._strange()
                yield answer
        except httpx.RequestError as error:
            raise self._lost(error) from None

    def _lost(self, error: httpx.RequestError) -> NoAnswer:
        return _unreachable(self.url, error) if isinstance(error, httpx.TransportError) else self._strange()

    def _check(self, status: int, body: bytes) -> None:
        if httpx.codes.is_success(status):
            return
        try:
            error = msgspec.json.decode(body, type=_Error).error
        except msgspec.MsgspecError:
            raise self._strange() from None
        raise NoAnswer(error.message, error.code)

    def _read(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError:
            raise self._strange() from None

    def _strange(self) -> NoAnswer:
        return NoAnswer(f"What answers at {self.url} is not this version of gllm.")


class _Said(msgspec.Struct):
    message: str
    code: str = ""


class _Error(msgspec.Struct):
    error: _Said


def _path(worker: str) -> str:
    return f"/admin/workers/{quote(worker, safe='')}"


def _unreachable(url: str, error: httpx.TransportError) -> Unreachable:
    if isinstance(error, httpx.ReadTimeout):
        return Unreachable(f"The gateway at {url} did not answer in time.")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unreachable(f"No gateway answers at {url}. Where is it? Give --url, or set GLLM_URL.")
    return Unreachable(f"The gateway at {url} broke off in the middle of its answer.")


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event; comments keep a connection alive, and say nothing."""
    waiting = b""
    async for piece in pieces:
        *blocks, waiting = (waiting + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            data = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
            if data:
                yield b"\n".join(data)
