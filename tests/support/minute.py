"""A minute in the life of a stack, in which everything happens that dashboards and rules are made for.

Steady traffic of three tenants goes on all the time. Into it come, one after the other: clients that err, hang up,
read slowly and repeat themselves; a burst that fills the line; an engine that stands still and is killed; a Redis and a
collector that do not answer; and a change of models.
"""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from tests.support.sockets import Raw, request
from tests.support.stack import MODEL, Stack
from tests.support.tenancy import signed

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
STORY, LIST = "Tell me a long story.", "A container is"
"""The engine ends the story by itself, after hundreds of tokens: another one can go on with it. A list is told
past its ends, so nobody can."""
STANDSTILLS = 4
WORDS = "Docker is,A queue is,A deadline is,What is batching?,A container is,What is a token?".split(",")


@dataclass
class Minute:
    began: float = 0.0
    ended: float = 0.0
    marks: dict[str, float] = field(default_factory=dict)
    """When what began, as Prometheus counts time."""


def live_through(stack: Stack, *, pause_s: float = 1.0, per_second: float = 3.0) -> Minute:
    """`pause_s`: how long each thing is given, and what follows it: a test's second is a picture's several."""
    minute = Minute(began=time.time())
    mischief = Mischief(stack)
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("steady", lambda: None),
        ("errors", mischief.errors),
        ("repeats", mischief.repeats),
        ("leaves", mischief.leaves),
        ("burst", mischief.burst),
        ("engine stands still", mischief.engine_stands_still),
        ("engine is killed", mischief.engine_is_killed),
        ("telemetry and store fail", mischief.neighbours_fail),
        ("models change", mischief.models_change),
    )
    with steady(stack, per_second), mischief.stops_reading():
        for name, step in steps:
            minute.marks[name] = time.time()
            step()
            time.sleep(4 * pause_s)
    time.sleep(2)
    minute.ended = time.time()
    return minute


# --- what goes on all the time --------------------------------------------------------------------------------------


@contextmanager
def steady(stack: Stack, per_second: float) -> Iterator[None]:
    """So many calls a second on a schedule, most of them streams."""
    over = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_keep_calling(stack.gateway.url, per_second, over)))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def _keep_calling(url: str, per_second: float, over: threading.Event) -> None:
    began = time.monotonic()
    async with client(url) as http, asyncio.TaskGroup() as tasks:
        for number in itertools.count():
            await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
            if over.is_set():
                return
            tasks.create_task(_one_of_many(http, number))


async def _one_of_many(http: httpx.AsyncClient, number: int) -> None:
    tenant = ("chat", "chat", "research", "nightly")[number % 4]
    prompt = WORDS[number % len(WORDS)]
    headers = {"x-session-id": f"conversation-{number % 5}"} if number % 3 == 0 else {}
    if number % 4 == 2:
        await ask(http, tenant, COMPLETIONS, {"prompt": prompt, "max_tokens": 24}, **headers)
    else:
        await stream(http, tenant, prompt, 32, **headers)


def client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, limits=limits)


async def ask(http: httpx.AsyncClient, tenant: str, path: str, body: dict[str, Any], **headers: str) -> int:
    """The status; 0 if the connection broke."""
    try:
        answer = await http.post(path, json={"model": MODEL, **body}, headers=signed(tenant, **headers))
    except httpx.HTTPError:
        return 0
    return answer.status_code


async def stream(
    http: httpx.AsyncClient,
    tenant: str,
    prompt: str,
    tokens: int,
    events: int | None = None,
    begun: Callable[[str], None] = lambda replica: None,
    /,
    **headers: str,
) -> int:
    """`events`: after so many the client hangs up. `begun` is told who answers, when the answer begins."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": prompt != STORY,
        "stream": True,
    }
    with suppress(httpx.HTTPError):
        async with http.stream("POST", CHAT, json=body, headers=signed(tenant, **headers)) as answer:
            seen = 0
            begun(answer.headers.get("x-gllm-replica", ""))
            async for line in answer.aiter_lines():
                seen += line.startswith("data:")
                if seen == events:
                    break
            return answer.status_code
    return 0


# --- what happens once ----------------------------------------------------------------------------------------------


class Mischief:
    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def errors(self) -> None:
        """Calls that are refused, each for a reason of its own."""
        asyncio.run(self._errors())

    async def _errors(self) -> None:
        short = {"prompt": "Docker is", "max_tokens": 4}
        async with client(self._stack.gateway.url) as http:
            await ask(http, "chat", COMPLETIONS, {"prompt": 5})
            await ask(http, "chat", COMPLETIONS, {**short, "model": "unheard-of"})
            for _ in range(25):
                await ask(http, "nobody", COMPLETIONS, short)
            for _ in range(8):
                await ask(http, "trial", COMPLETIONS, short)
            for _ in range(4):
                await ask(http, "frugal", COMPLETIONS, {**short, "max_tokens": 60})
            await asyncio.gather(*(stream(http, "single", "A queue is", 40) for _ in range(3)))

    def repeats(self) -> None:
        """Keys that come again: beside the first call, after it, after a part of it, and with another body."""
        asyncio.run(self._repeats())

    async def _repeats(self) -> None:
        async with client(self._stack.gateway.url) as http:
            for number in range(3):
                key = {"idempotency-key": f"key-{number}"}
                first = asyncio.ensure_future(stream(http, "chat", "A token is", 40, **key))
                await asyncio.sleep(0.2)
                await stream(http, "chat", "A token is", 40, **key)
                await first
                await stream(http, "chat", "A token is", 40, **key)
                await stream(http, "chat", "A token is", 40, **key, **{"last-event-id": "10"})
                await stream(http, "chat", "Another one is", 40, **key)

    def leaves(self) -> None:
        """Clients that hang up in the middle."""
        asyncio.run(self._leaves())

    async def _leaves(self) -> None:
        async with client(self._stack.gateway.url) as http:
            await asyncio.gather(*(stream(http, "research", "A queue is", 200, 3) for _ in range(3)))

    @contextmanager
    def stops_reading(self) -> Iterator[None]:
        """One client does, beside all that happens: it takes a while until its buffers are full."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Go on"}],
            "max_tokens": 1_900,
            "ignore_eos": True,
            "n": 4,
            "stream": True,
            "logprobs": True,
            "top_logprobs": 20,
        }
        signature = (f"{name}: {value}" for name, value in signed("chat").items())
        with Raw(self._stack.gateway.port, takes=4_096) as raw:
            raw.say(request(CHAT, body, *signature))
            yield

    def burst(self) -> None:
        """More than run and wait at once; some cannot wait for long."""
        asyncio.run(self._burst())

    async def _burst(self) -> None:
        async with client(self._stack.gateway.url) as http:
            patient = [stream(http, each, "A deadline is", 100) for each in ("chat", "research", "nightly") * 6]
            hurried = [
                stream(http, "chat", "A deadline is", 100, **{"x-request-timeout-ms": str(ms)})
                for ms in (40, 300, 600, 900, 1_200)
            ]
            late = [stream(http, "chat", "A deadline is", 60) for _ in range(12)]
            first = asyncio.gather(*patient)
            await asyncio.sleep(0.5)
            await asyncio.gather(*hurried, *late)
            await first

    def engine_stands_still(self) -> None:
        """Its streams stall, and calls that come to it are answered by the other one, until it is given a pause. Which
        calls are tried a second time is partly chance, so it may have to stand still more than once."""
        for _ in range(STANDSTILLS):
            victim = self._victim
            victim.suspend()
            try:
                asyncio.run(self._ask_many(24, every_s=0.15))
            finally:
                victim.resume()
            if self._stack.prometheus.now("max_over_time(max(gllm_circuit_open)[30s:1s]) > 0"):
                return
            assert self._stack.all_ready(), self._stack.tails()

    async def _ask_many(self, calls: int, tokens: int = 40, every_s: float = 0.25) -> None:
        """Of many conversations, so that each engine is the home of some."""
        async with client(self._stack.gateway.url) as http, asyncio.TaskGroup() as tasks:
            for number in range(calls):
                session = {"x-session-id": f"many-{number}"}
                tasks.create_task(stream(http, "chat", LIST, tokens, **session))
                await asyncio.sleep(every_s)

    def engine_is_killed(self) -> None:
        """In the middle of streams that can be taken over, and of others that cannot. Its worker starts it again."""
        assert self._stack.all_ready(), self._stack.tails()
        asyncio.run(self._killed_at_work())
        assert self._stack.all_ready(), self._stack.tails()

    async def _killed_at_work(self) -> None:
        victim, name = self._victim, self._stack.workers[1].name
        under_way: Counter[tuple[str, str]] = Counter()

        async def ask(http: httpx.AsyncClient, prompt: str, number: int) -> None:
            where: list[tuple[str, str]] = []

            def begun(replica: str) -> None:
                where.append((replica, prompt))
                under_way.update(where)

            await stream(http, "chat", prompt, 800, None, begun, **{"x-session-id": f"many-{number}"})
            under_way.subtract(where)

        async with client(self._stack.gateway.url) as http, asyncio.TaskGroup() as tasks:
            for number in range(16):
                tasks.create_task(ask(http, (STORY, LIST)[number % 2], number))
            patience = time.monotonic() + 30
            while not (under_way[name, STORY] > 0 and under_way[name, LIST] > 0):
                assert time.monotonic() < patience, f"{under_way}\n{self._stack.tails()}"
                await asyncio.sleep(0.02)
            victim.kill()

    def neighbours_fail(self) -> None:
        """Neither is needed for an answer; only calls with a key are refused meanwhile."""
        stack = self._stack
        stack.collector.status = 400
        stack.redis.pause()
        try:
            time.sleep(1)
            asyncio.run(self._keyed(3))
            time.sleep(3)
        finally:
            stack.redis.resume()
            stack.collector.status = 200

    async def _keyed(self, calls: int) -> None:
        async with client(self._stack.gateway.url) as http:
            for number in range(calls):
                await stream(http, "chat", "A queue is", 4, **{"idempotency-key": f"lost-{number}"})

    def models_change(self) -> None:
        answer = self._stack.reload()
        assert answer.status_code == 200, f"{answer.text}\n{self._stack.tails()}"

    @property
    def _victim(self) -> psutil.Process:
        found = self._stack.workers[1].engine_process()
        assert found is not None, self._stack.tails()
        return found
