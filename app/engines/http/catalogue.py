"""What an engine tells of itself, its models and its load: asked rarely and off the data path, so httpx does it."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec

from app.engines.http.address import Address
from app.engines.http.limits import Limits, Timeouts
from app.engines.http.refusals import refusal
from app.engines.http.shortage import is_ours
from app.errors import (
    EngineConnectTimeout,
    EngineLost,
    EngineNonsense,
    EngineOutOfReach,
    EngineSilent,
    EngineUnreachable,
)
from app.reliability.limit import Load

ANSWER_S = 5.0
"""For all of the answer. It is a list in the engine's memory."""


_GAUGE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|(?:kv|gpu)_cache_usage_perc)(?:\{[^}]*\})? ([0-9.e+-]+)",
    re.MULTILINE,
)
_CACHE = (b"kv_cache_usage_perc", b"gpu_cache_usage_perc")
"""Its name, and the one it had in vLLM 0.8."""


class Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class Listing(msgspec.Struct):
    data: list[Model]


class Catalogue:
    def __init__(self, address: Address, timeouts: Timeouts, limits: Limits, api_key: str | None) -> None:
        self._url = address.url
        self._max_bytes = limits.max_answer_bytes
        self._api_key = api_key
        self._client = httpx.AsyncClient(
            headers={"accept": "application/json", "accept-encoding": "identity"}
            | ({"authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=httpx.Timeout(ANSWER_S, connect=min(timeouts.connect_s, ANSWER_S)),
            limits=httpx.Limits(max_keepalive_connections=0),  # a probe that connects anew proves more
            verify=address.tls or False,  # False only where no TLS is spoken
            trust_env=False,
        )

    async def models(self) -> dict[str, int | None]:
        body = await self._get("/v1/models")
        try:
            listing = msgspec.json.decode(body, type=Listing)
        except (msgspec.DecodeError, RecursionError) as error:
            raise EngineNonsense(detail=f"its list of models: {error}") from error
        return {model.id: model.max_model_len for model in listing.data}

    async def load(self) -> Load | None:
        """By vLLM's gauges, which our own engine has too; of several data-parallel parts together."""
        found: dict[bytes, list[float]] = {}
        for name, value in _GAUGE.findall(await self._get("/metrics")):
            found.setdefault(name, []).append(float(value))
        if b"num_requests_waiting" not in found:
            return None
        return Load(
            waiting=int(sum(found[b"num_requests_waiting"])),
            running=int(sum(found.get(b"num_requests_running", ()))),
            kv_share=max((share for name in _CACHE for share in found.get(name, ())), default=None),
        )

    async def _get(self, path: str) -> bytes:
        with _mapped():
            async with asyncio.timeout(ANSWER_S), self._client.stream("GET", self._url + path) as answer:
                body = await self._read(answer)
        if answer.status_code != 200:
            headers = {name.lower(): value for name, value in answer.headers.raw}
            raise refusal(answer.status_code, headers, body, self._api_key)
        return body

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _read(self, answer: httpx.Response) -> bytes:
        body = bytearray()
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > self._max_bytes:
                raise EngineNonsense("The engine's answer is larger than the gateway accepts.")
        return bytes(body)


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise EngineConnectTimeout from error
    except httpx.ConnectError as error:
        if is_ours(error):
            raise EngineOutOfReach(retry_after=1.0, detail=str(error)) from error
        raise EngineUnreachable(detail=str(error)) from error
    except (httpx.TimeoutException, TimeoutError) as error:
        raise EngineSilent from error
    except httpx.RemoteProtocolError as error:
        kind = EngineLost if "disconnected" in str(error) or "closed" in str(error) else EngineNonsense
        raise kind(detail=str(error)) from error
    except httpx.TransportError as error:
        raise EngineLost(detail=str(error)) from error
