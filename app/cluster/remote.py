"""A worker on the other side of a connection."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from app.cluster.control import Adapter, Order, Released, Status
from app.errors import ClusterError, WorkerRefused, WorkerUnreachable
from app.wire.errors import ERRORS, ErrorBody

T = TypeVar("T")

CONNECT_S = 3.0
ANSWER_S = 5.0
"""For what a worker answers out of its memory, beyond what it was asked to wait."""
RELEASE_S = 120.0
"""An engine is stopped, and its memory proved to be free. Beyond the time for draining."""
ADAPTER_S = 320.0
LOG_SILENCE_S = 60.0
"""An engine that says nothing is well. A log that is only read to its end is not silent."""

ATTEMPTS = 3
FIRST_PAUSE_S = 0.2

MOST_BYTES = 2**20
MOST_TEXT = 2_000
"""Of an error's text."""

_KINDS: Mapping[str, type[ClusterError]] = {
    row.code: kind for kind, row in ERRORS.items() if issubclass(kind, ClusterError)
}


class RemoteWorker:
    def __init__(self, address: str, secret: str | None, *, answer_s: float = ANSWER_S) -> None:
        """`answer_s`: how long it may be silent, beyond what it was asked to wait."""
        self.address = address
        self._name = address
        self._answer_s = answer_s
        self._http = httpx.AsyncClient(
            base_url=address,
            headers={"accept": "application/json", "accept-encoding": "identity"}
            | ({"authorization": f"Bearer {secret}"} if secret else {}),
            timeout=httpx.Timeout(answer_s, connect=min(CONNECT_S, answer_s)),
            trust_env=False,
        )

    @property
    def name(self) -> str:
        """What it calls itself; its address until it has been looked at."""
        return self._name

    async def status(self, after: int = -1, wait_s: float = 0.0) -> Status:
        """Whoever looks does so again and again: nothing is repeated here."""
        query = {"after": str(after), "wait_s": f"{wait_s:g}"}
        status = await self._ask("GET", "/status", Status, wait_s + self._answer_s, params=query)
        self._name = status.name
        return status

    async def load(self, order: Order, *, drain_s: float, force: bool = False) -> Status:
        body = {"model_path": order.model, "force_reload": force, "drain_s": drain_s}
        body |= {"names": order.names} if order.names else {}
        body |= {"args": order.args} if order.args is not None else {}
        body |= {"id": order.id} if order.id else {}
        return await self._tell("POST", "/load_model", Status, json=body)

    async def release(self, *, drain_s: float) -> Released:
        return await self._tell("POST", "/release_gpus", Released, drain_s + RELEASE_S, json={"drain_s": drain_s})

    async def drain(self) -> Status:
        return await self._tell("POST", "/drain", Status)

    async def admit(self) -> Status:
        return await self._tell("POST", "/admit", Status)

    async def put_adapter(self, adapter: Adapter) -> Status:
        return await self._tell("POST", "/adapters", Status, ADAPTER_S, json=msgspec.structs.asdict(adapter))

    async def drop_adapter(self, name: str) -> Status:
        return await self._ask("DELETE", f"/adapters/{quote(name, safe='')}", Status, ADAPTER_S)

    async def logs(self, lines: int, *, follow: bool = False) -> AsyncIterator[bytes]:
        query = {"lines": str(lines)} | ({"follow": "1"} if follow else {})
        patience = httpx.Timeout(self._answer_s, read=None if follow else LOG_SILENCE_S)
        with _mapped(self._name):
            async with self._http.stream("GET", "/logs", params=query, timeout=patience) as answer:
                if answer.status_code != 200:
                    raise _refusal(self._name, answer.status_code, answer.headers, await _read(answer))
                async for block in answer.aiter_raw():
                    yield block

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _tell(self, method: str, path: str, kind: type[T], limit_s: float | None = None, **how: Any) -> T:
        """What is said twice does no harm, so it is said again where nobody may have heard it."""
        again = AsyncRetrying(
            retry=retry_if_exception(_may_be_unheard),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=FIRST_PAUSE_S),
            reraise=True,
        )
        told: T = await again(self._ask, method, path, kind, limit_s or self._answer_s, **how)
        return told

    async def _ask(self, method: str, path: str, kind: type[T], limit_s: float, **how: Any) -> T:
        patience = httpx.Timeout(limit_s, connect=min(CONNECT_S, limit_s))
        with _mapped(self._name):
            async with (
                asyncio.timeout(limit_s),
                self._http.stream(method, path, timeout=patience, **how) as answer,
            ):
                body = await _read(answer)
        if answer.status_code not in (200, 202):
            raise _refusal(self._name, answer.status_code, answer.headers, body)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise WorkerRefused(f"What answers at {self.address} is no worker of ours.") from None


def _may_be_unheard(error: BaseException) -> bool:
    return isinstance(error, WorkerUnreachable) and error.retryable


def _unheard(text: str) -> WorkerUnreachable:
    error = WorkerUnreachable(text)
    error.retryable = True
    return error


async def _read(answer: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in answer.aiter_raw():
        body += piece
        if len(body) > MOST_BYTES:
            raise WorkerRefused("Its answer is larger than any worker's.")
    return bytes(body)


@contextmanager
def _mapped(name: str) -> Iterator[None]:
    try:
        yield
    except (httpx.TimeoutException, TimeoutError):
        raise WorkerUnreachable(f"{name} did not answer in time.") from None
    except httpx.RemoteProtocolError:
        raise _unheard(f"{name} broke off, or does not speak HTTP.") from None
    except (httpx.TransportError, httpx.InvalidURL):
        raise _unheard(f"{name} cannot be reached.") from None


def _refusal(name: str, status: int, headers: httpx.Headers, body: bytes) -> ClusterError:
    """Its error as ours, by the code."""
    if status in (401, 403):
        return WorkerRefused(f"{name} wants another CLUSTER_SECRET.")
    try:
        said = msgspec.json.decode(body, type=ErrorBody).error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return WorkerRefused(f"{name} answered {status}, and not as a worker does.")
    kind = _KINDS.get(said.code, WorkerRefused)
    return kind(said.message[:MOST_TEXT], param=said.param, retry_after=_seconds(headers.get("retry-after")))


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 7 else None
