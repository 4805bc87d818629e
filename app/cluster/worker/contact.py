"""What a worker asks its engine, and tells it: rarely, and beside the requests of others."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import httpx

from app.cluster.control import Adapter
from app.engines.http.address import parse
from app.engines.http.catalogue import Catalogue
from app.engines.http.limits import Limits, Timeouts
from app.engines.http.refusals import Said
from app.engines.http.shortage import is_ours
from app.errors import EngineError, EngineOutOfReach, LoadFailed, NotOffered, UnknownAdapter

CONNECT_S = 5.0
PROBE_S = 2.0
ADAPTER_S = 300.0
"""Its weights may come from a slow disk."""


class Contact:
    def __init__(self, base_url: str) -> None:
        timeouts = Timeouts(connect_s=CONNECT_S, first_byte_s=PROBE_S, idle_s=PROBE_S)
        self._catalogue = Catalogue(parse(base_url), timeouts, Limits(), api_key=None)
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=CONNECT_S,
            limits=httpx.Limits(max_keepalive_connections=0),  # a look that connects anew proves more
            trust_env=False,
            verify=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._http.aclose()
        await self._catalogue.aclose()

    async def is_well(self, within_s: float) -> bool:
        """A server that has no `/health` is well when it lists its models. Raises `EngineOutOfReach` where it could not
        be asked, for want of something of ours."""
        try:
            async with asyncio.timeout(within_s):
                status = (await self._http.get("/health", timeout=within_s)).status_code
                if status in (404, 405):
                    status = (await self._http.get("/v1/models", timeout=within_s)).status_code
        except (httpx.HTTPError, TimeoutError) as error:
            if is_ours(error):
                raise EngineOutOfReach from error
            return False
        return status == 200

    async def names(self) -> tuple[str, ...]:
        return tuple(await self._catalogue.models())

    async def at_work(self) -> int | None:
        """Requests that run or wait, by its own account; `None` if it does not say, or not now."""
        try:
            load = await self._catalogue.load()
        except EngineError:
            return None
        return None if load is None else load.running + load.waiting

    async def try_out(self, model: str, within_s: float) -> str | None:
        """One token. Why it cannot be had, as the end of a sentence; what an engine does not offer is no fault."""
        order = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        try:
            async with asyncio.timeout(within_s):
                answer = await self._http.post("/v1/completions", json=order, timeout=within_s)
        except TimeoutError:
            return f"was not answered within {within_s:g} s"
        except httpx.TimeoutException:
            return f"was not answered within {within_s:g} s"
        except httpx.HTTPError as error:
            return f"broke off ({type(error).__name__})"
        if answer.status_code < 500 or answer.status_code == 501:
            return None
        return f"was answered with {answer.status_code}"

    async def put_adapter(self, adapter: Adapter, *, instead: bool = False) -> None:
        """`instead` of another one of this name."""
        order: dict[str, str | bool] = {"lora_name": adapter.name, "lora_path": adapter.path}
        answer = await self._tell("load_lora_adapter", order | ({"load_inplace": True} if instead else {}))
        if answer.status_code != 200:
            raise LoadFailed(f"The adapter {adapter.name} could not be loaded: {_sentence(answer)}", param="path")

    async def drop_adapter(self, name: str) -> None:
        answer = await self._tell("unload_lora_adapter", {"lora_name": name})
        if answer.status_code == 404:
            raise UnknownAdapter
        if answer.status_code != 200:
            raise LoadFailed(f"The adapter {name} could not be removed: {_sentence(answer)}", param="name")

    async def _tell(self, what: str, body: Mapping[str, str | bool]) -> httpx.Response:
        try:
            answer = await self._http.post(f"/v1/{what}", json=body, timeout=ADAPTER_S)
        except httpx.HTTPError as error:
            raise LoadFailed(f"The engine did not answer ({type(error).__name__}).") from error
        if answer.status_code in (404, 405, 501) and not Said.of(answer.content).message:
            raise NotOffered("This engine takes no adapters; vLLM does when it is started with --enable-lora.")
        return answer


def _sentence(answer: httpx.Response) -> str:
    said = Said.of(answer.content).message
    return said or f"the engine answered {answer.status_code}."
