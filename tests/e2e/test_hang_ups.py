"""A client that hangs up stops the engine's work: asserted on the engine, and on what the gateway holds."""

import asyncio
import random
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, comes_true
from tests.support.server import RawClient
from tests.support.sockets import Raw, request

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BATCH, PLACES = 16, 64
"""As many sequences as the session's engine runs at once, and as many as it takes in; the others wait."""

SOON_S = 1.0

pytestmark = pytest.mark.usefixtures("well")


def endless(path: str = COMPLETIONS, *, stream: bool, n: int = 1, max_tokens: int = 1_900) -> bytes:
    asked = {"prompt": "On and on"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "Go on"}]}
    return request(path, {**asked, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream, "n": n})


def idle_within(engine: Engine, limit_s: float) -> float:
    return comes_true(lambda: engine.at_work() == 0, limit_s, every_s=0.02)


@pytest.fixture(autouse=True)
def _idle(engine: Engine) -> None:
    assert idle_within(engine, 5)


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_hanging_up_on_running_work_ends_it_within_a_second(
    engine: Engine, gateway: GatewayProcess, stream: bool, path: str, how: str
) -> None:
    aborted = engine.aborted()
    with Raw(gateway.port) as client:
        client.say(endless(path, stream=stream))
        if stream:
            client.until(b"data: ")
        assert comes_true(lambda: engine.at_work() == 1, 5)
        if how == "reset":
            client.reset()
    assert idle_within(engine, SOON_S)
    assert engine.aborted() == aborted + 1
    assert comes_true(lambda: gateway.in_flight() == 0, SOON_S)


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_hanging_up_ends_every_choice_of_a_request(engine: Engine, gateway: GatewayProcess, stream: bool) -> None:
    with Raw(gateway.port) as client:
        client.say(endless(stream=stream, n=8))
        assert comes_true(lambda: engine.at_work() == 8, 5)
    assert idle_within(engine, SOON_S)


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_hanging_up_on_work_that_waits_takes_it_out_of_the_queue(
    engine: Engine, gateway: GatewayProcess, stream: bool
) -> None:
    with ExitStack() as running:
        for _ in range(BATCH):
            running.enter_context(Raw(gateway.port)).say(endless(stream=stream))
        assert comes_true(lambda: engine.sum_of("vllm:num_requests_running") == BATCH, 5)
        with ExitStack() as waiting:
            for _ in range(4):
                waiting.enter_context(Raw(gateway.port)).say(endless(stream=stream))
            assert comes_true(lambda: engine.sum_of("vllm:num_requests_waiting") == 4, 5)
        assert comes_true(lambda: engine.sum_of("vllm:num_requests_waiting") == 0, SOON_S)
        assert engine.sum_of("vllm:num_requests_running") == BATCH
    assert idle_within(engine, SOON_S)


def test_a_full_engine_says_when_to_come_back_and_has_room_when_someone_hangs_up(
    engine: Engine, gateway: GatewayProcess
) -> None:
    asked = {"prompt": "Docker is", "max_tokens": 2}
    with ExitStack() as places:
        for _ in range(PLACES // 8):
            places.enter_context(Raw(gateway.port)).say(endless(stream=True, n=8))
        assert comes_true(lambda: engine.at_work() == PLACES, 5)
        refused = gateway.http.post(COMPLETIONS, json=asked)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert gateway.http.get("/health").json()["status"] == "healthy"
    assert idle_within(engine, SOON_S)
    assert gateway.http.post(COMPLETIONS, json=asked).status_code == 200


def test_under_another_server_hang_ups_are_heard_too(engine: Engine, logs: Path) -> None:
    """Without what our own protocol offers beyond ASGI."""
    with running(GatewayProcess.under_plain_uvicorn("plain", free_port(), logs, ENGINE_URLS=engine.url)) as gateway:
        for stream in (True, False):
            for how in ("close", "reset"):
                with Raw(gateway.port) as client:
                    client.say(endless(stream=stream))
                    assert comes_true(lambda: engine.at_work() == 1, 5)
                    if how == "reset":
                        client.reset()
                assert idle_within(engine, SOON_S)
                assert comes_true(lambda: gateway.in_flight() == 0, SOON_S)
        gateway.signal(signal.SIGTERM)
        gateway.wait()


def test_a_reader_that_takes_nothing_is_cut_off_and_its_work_ended(engine: Engine, logs: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "Go on"}], "max_tokens": 1_900, "ignore_eos": True, "n": 8}
    aborted = engine.aborted()
    settings = {"ENGINE_URLS": engine.url, "WRITE_TIMEOUT": "1"}
    with (
        running(GatewayProcess("impatient", free_port(), logs, **settings)) as gateway,
        Raw(gateway.port, takes=4_096) as client,
    ):
        memory = gateway.resident_mb()
        client.say(request(CHAT, {**asked, "stream": True, "logprobs": True, "top_logprobs": 20}))
        assert comes_true(lambda: engine.at_work() == 8, 5)
        assert idle_within(engine, 40)
        assert engine.aborted() == aborted + 8
        assert gateway.in_flight() == 0
        assert gateway.resident_mb() - memory < 20


@pytest.mark.timeout(150)
async def test_a_thousand_streams_hung_up_at_random_points_leave_nothing(
    engine: Engine, gateway: GatewayProcess
) -> None:
    chance = random.Random(1_000)
    await hang_up_on(gateway, 100, chance)  # what is made once and kept has been made now
    assert idle_within(engine, SOON_S)
    files = {process.name: process.open_files() for process in (engine, gateway)}
    memory = {process.name: process.resident_mb() for process in (engine, gateway)}
    taken, aborted = engine.taken(), engine.aborted()

    points = await hang_up_on(gateway, 1_000, chance)

    assert idle_within(engine, SOON_S)
    assert comes_true(lambda: gateway.in_flight() == 0, SOON_S)
    assert points.total() == 1_000
    assert min(points.values()) > 100
    assert engine.taken() - taken > 500
    assert engine.aborted() - aborted > 500
    for process in (engine, gateway):
        grown = process.resident_mb() - memory[process.name]
        assert grown < 20, f"{process.name} grew by {grown:.0f} MB"
        # a connection that is kept for the next request is given up after some seconds
        assert comes_true(lambda each=process: each.open_files() <= files[each.name], 10)  # type: ignore[misc]


async def hang_up_on(gateway: GatewayProcess, times: int, chance: random.Random) -> Counter[str]:
    """So many streams, some at a time, each ended at another point. Returns how many ended at which kind of point."""
    left = iter(range(times))
    points: Counter[str] = Counter()

    async def one_after_another() -> None:
        for _ in left:
            points[await hang_up_once(gateway.port, chance)] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(one_after_another())
    return points


async def hang_up_once(port: int, chance: random.Random) -> str:
    path = chance.choice((CHAT, COMPLETIONS))
    asked = endless(path, stream=True, n=chance.choice((1, 1, 1, 2)))
    point = chance.choice(("in the request", "at once", "after a while", "in the answer", "in the answer"))
    async with RawClient.to(port) as client:
        await client.say(asked[: chance.randrange(len(asked))] if point == "in the request" else asked)
        if point == "after a while":
            await asyncio.sleep(chance.random() * 0.2)
        if point == "in the answer":
            wanted = chance.randrange(1, 4_000)
            while wanted > 0 and (part := await client.reader.read(wanted)):
                wanted -= len(part)
        if chance.random() < 0.5:
            client.reset()
    return point
