import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from app.reliability.stores.redis import SharedStore

Told = list[tuple[bool, str]]
Stores = Callable[..., SharedStore]

GENEROUS_S = 5.0
"""For tests about something else than time, on a busy machine."""


@pytest.fixture
def told() -> Told:
    """What stores made by `stores` said about themselves."""
    return []


@pytest.fixture
async def stores(told: Told) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as made:

        def store(url: str, timeout_s: float = GENEROUS_S) -> SharedStore:
            made_one = SharedStore(url, timeout_s, time.monotonic, lambda *news: told.append(news))
            made.push_async_callback(made_one.aclose)
            return made_one

        yield store
