"""What a request leaves behind is freed when it is over, and not when the garbage collector comes by: it would stop
everybody for tens of milliseconds."""

import gc
import json
from collections import Counter
from collections.abc import Iterator

import pytest

from app.engines.scripted import Scripted
from tests.gateway.conftest import Build, asking
from tests.gateway.test_protocol import request
from tests.support.server import RawClient, serving

REQUESTS = 20
OURS = ("app", "uvicorn")


@pytest.fixture
def kept() -> Iterator[None]:
    """What only the collector would free is kept, to be looked at; but for what was there before."""
    gc.collect()
    gc.freeze()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()
    gc.unfreeze()


def of_ours() -> Counter[str]:
    gc.collect()
    kinds = Counter(type(each) for each in gc.garbage)
    return Counter({kind.__qualname__: n for kind, n in kinds.items() if kind.__module__.partition(".")[0] in OURS})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_request_is_no_work_for_the_garbage_collector(build: Build, kept: None, stream: bool) -> None:
    house = await build(only=Scripted(words=("a ", "b ")))
    said = request(json.dumps(asking(stream=stream)).encode())
    async with serving(house.gateway) as port, RawClient.to(port) as client:
        for _ in range(REQUESTS):
            await client.say(said)
            if stream:
                await client.reader.readuntil(b"0\r\n\r\n")
            else:
                assert (await client.answer())[0] == 200
        garbage = of_ours()
    assert {kind: n for kind, n in garbage.items() if n > 1} == {}
