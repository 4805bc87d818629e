import inspect
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from gllm import GLLM, AsyncGLLM, Retries
from tests.client.scripted import PROMPTLY, Scripted, scripted

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as state:
        yield state


class Either:
    """Both clients in one shape, so that a test is said once. Pauses are written down instead of being waited."""

    def __init__(self, kind: str, url: str, retries: Retries = PROMPTLY, api_key: str | None = None) -> None:
        self.pauses: list[float] = []
        self.client: GLLM | AsyncGLLM
        if kind == "sync":
            http = httpx.Client(trust_env=False, verify=False)
            self.client = GLLM(url, api_key, retries=retries, http_client=http, sleep=self.pauses.append)
        else:
            ahttp = httpx.AsyncClient(trust_env=False, verify=False)
            self.client = AsyncGLLM(url, api_key, retries=retries, http_client=ahttp, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def do(self, method: str, *args: Any, **options: Any) -> Any:
        found = getattr(self.client, method)(*args, **options)
        return await found if inspect.isawaitable(found) else found

    async def chat(self, **options: Any) -> Any:
        return await self.do("get_chat_completion", "demo", HELLO, **options)

    async def pieces(self, into: list[Any] | None = None, **options: Any) -> list[Any]:
        """All of them; `into` has what came before an error."""
        found: list[Any] = [] if into is None else into
        stream: Any = self.client.stream_chat_completion("demo", HELLO, **options)
        if isinstance(self.client, GLLM):
            found.extend(stream)
        else:
            async for piece in stream:
                found.append(piece)  # noqa: PERF401  # one by one: an error may come
        return found

    async def some_pieces(self, count: int, **options: Any) -> list[Any]:
        """Left early."""
        found: list[Any] = []
        stream: Any = self.client.stream_chat_completion("demo", HELLO, **options)
        if isinstance(self.client, GLLM):
            with stream:
                for piece in stream:
                    found.append(piece)
                    if len(found) == count:
                        break
        else:
            async with stream:
                async for piece in stream:
                    found.append(piece)
                    if len(found) == count:
                        break
        return found

    async def aclose(self) -> None:
        http = self.client._http
        if isinstance(http, httpx.Client):
            http.close()
        else:
            await http.aclose()


Make = Callable[..., Either]


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
async def make(kind: str, server: Scripted) -> Any:
    made: list[Either] = []

    def one(retries: Retries = PROMPTLY, url: str = "", **options: Any) -> Either:
        made.append(Either(kind, url or server.url, retries, **options))
        return made[-1]

    yield one
    for each in made:
        await each.aclose()


@pytest.fixture
def client(make: Make) -> Either:
    return make()
