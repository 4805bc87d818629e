"""Three gateways on one Redis and one real engine: to their clients they are one."""

import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.reliability.stores.redis_quota import LEASE_S, RENEWED_S
from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, comes_true
from tests.support.redis_server import RedisServer, redis_server
from tests.support.sockets import Raw, request
from tests.support.tenancy import ADMIN, signed, write_tenants

pytestmark = pytest.mark.alone
COMPLETIONS = "/v1/completions"
SHORT = {"prompt": "Docker is", "max_tokens": 2}
LONG = {"prompt": "On and on", "max_tokens": 600, "ignore_eos": True, "stream": True}

ENDLESS = LONG | {"max_tokens": 1_900}
DONE = b"data: [DONE]\n\n"
INTERRUPTED = b'"code":"engine_interrupted"'
MINUTE, PLACES, HELD, WORDS = 12, 4, 2, 1_800
TENANTS = {
    "minute": {"requests_per_minute": MINUTE},
    "places": {"concurrent": PLACES},
    "words": {"tokens_per_minute": WORDS},
    "single": {"concurrent": 1},
    "held": {"concurrent": HELD},
    "twins": {},
    "owners": {},
    "counted": {},
    "lasting": {"requests_per_minute": 1_000_000, "tokens_per_minute": 10_000_000},
}
KEY_LEASE_S = 2.0
REDIS_TIMEOUT_S = 0.3
"""Of the pair: so long that a busy machine is not taken for a call that waited for Redis."""


class House:
    """Gateways that share what they know, and whoever asks them."""

    def __init__(self, engine: Engine, logs: Path, tenants: Path, redis: RedisServer, **settings: str) -> None:
        self.gateways: list[GatewayProcess] = []
        self.redis = redis
        self._logs = logs
        self._settings = {
            "ENGINE_URLS": engine.url,
            "TENANTS_FILE": str(tenants),
            "REDIS_URL": redis.url,
            "IDEMPOTENCY_LEASE": str(KEY_LEASE_S),
            "LEDGER_FLUSH_INTERVAL": "0.2",
            **settings,
        }

    def gateway(self, name: str) -> GatewayProcess:
        """One more, not ready yet."""
        return GatewayProcess(name, free_port(), self._logs, **self._settings)

    def asked_at_once(self, tenant: str, count: int, body: object, **headers: str) -> list[httpx.Response]:
        """Of all gateways in turn, so many requests at the same time."""
        with ThreadPoolExecutor(count) as threads:
            asked = [
                threads.submit(ask, self.gateways[number % len(self.gateways)], tenant, body, **headers)
                for number in range(count)
            ]
        return [each.result() for each in asked]

    def is_without_redis(self) -> bool:
        """And each knows it, says it, and refuses what it could not remember."""
        return all(says_of_redis(gateway, up=False) and refuses_keys(gateway) for gateway in self.gateways)

    def has_redis(self) -> bool:
        return all(says_of_redis(gateway, up=True) and takes_keys_soon(gateway) for gateway in self.gateways)


def takes_keys_soon(gateway: GatewayProcess) -> bool:
    """A busy machine may be late with an answer once more."""
    return comes_true(lambda: not refuses_keys(gateway), 10) > 0


def ask(gateway: GatewayProcess, tenant: str, body: object = SHORT, **headers: str) -> httpx.Response:
    return gateway.http.post(COMPLETIONS, json=body, headers=signed(tenant, **headers))


def says_of_redis(gateway: GatewayProcess, *, up: bool) -> bool:
    """Within seconds."""
    return comes_true(lambda: gateway.samples()["gllm_shared_store_up"] == up, 10) > 0


def refuses_keys(gateway: GatewayProcess) -> bool:
    answer = ask(gateway, "twins", **{"Idempotency-Key": f"asked-of-{gateway.name}"})
    if answer.status_code == 200:
        return False
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "idempotency_unavailable")
    assert answer.headers["x-gllm-reason"] == "idempotency_unavailable"
    assert int(answer.headers["retry-after"]) >= 1
    return True


@pytest.fixture(scope="module")
def tenants(logs: Path) -> Path:
    file = logs / "three.toml"
    write_tenants(file, TENANTS)
    return file


@pytest.fixture(scope="module")
def three(engine: Engine, logs: Path, tenants: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """They may wait for Redis longer than they would: what is shown is that they count right, not how busy CI is."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path_factory.mktemp("redis-of-three")))
        house = House(engine, logs, tenants, redis, REDIS_TIMEOUT="1")
        starting = [house.gateway(f"gateway-{letter}") for letter in "abc"]
        house.gateways = [stack.enter_context(running(gateway)) for gateway in starting]
        yield house


@pytest.fixture
def pair(engine: Engine, logs: Path, tenants: Path, tmp_path: Path) -> Iterator[House]:
    """Two, with a Redis that may be taken away."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path))
        house = House(engine, logs, tenants, redis, REDIS_TIMEOUT=str(REDIS_TIMEOUT_S))
        starting = [house.gateway(name) for name in ("left", "right")]
        house.gateways = [stack.enter_context(running(gateway)) for gateway in starting]
        yield house


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_request_limit_is_exact_to_one_request(three: House) -> None:
    answers = three.asked_at_once("minute", 3 * MINUTE, SHORT)
    assert Counter(answer.status_code for answer in answers) == {200: MINUTE, 429: 2 * MINUTE}
    for refused in refusals(answers):
        assert refused.json()["error"]["code"] == "request_rate"
        assert 1 <= int(refused.headers["retry-after"]) <= 60 / MINUTE


def test_a_limit_of_places_is_exact_to_one_request_and_they_come_back(three: House, engine: Engine) -> None:
    for _ in range(2):
        with ExitStack() as stack:
            clients = [stack.enter_context(Raw(gateway.port)) for gateway in three.gateways for _ in range(PLACES)]
            for client in clients:
                client.say(raw_request("places", LONG))
            answers = [client.answer() for client in clients]
            assert Counter(status for status, _, _ in answers) == {200: PLACES, 429: 2 * PLACES}
            assert all(int(head["retry-after"]) >= 1 for status, head, _ in answers if status == 429)
        assert comes_true(lambda: places_left(three.gateways[0], "places") == PLACES, 5)
        assert comes_true(lambda: engine.at_work() == 0, 5)


def test_who_asks_one_after_the_other_never_meets_a_limit_of_one(three: House) -> None:
    for gateway in three.gateways:
        assert [ask(gateway, "single").status_code for _ in range(20)] == [200] * 20


def test_a_token_limit_is_overrun_by_one_request_at_most_and_goes_on_when_it_says(three: House) -> None:
    body = {"prompt": "Docker is", "max_tokens": 100, "ignore_eos": True}
    began = time.monotonic()
    answers = three.asked_at_once("words", 60, body)
    assert {each.json()["error"]["code"] for each in refusals(answers)} == {"token_quota"}
    used = [each.json()["usage"]["total_tokens"] for each in answers if each.status_code == 200]
    refilled = (time.monotonic() - began) * WORDS / 60
    assert WORDS / 2 < sum(used) <= WORDS + refilled + max(used)
    refused = refusals(three.asked_at_once("words", 12, body))
    time.sleep(max(int(each.headers["retry-after"]) for each in refused))
    assert ask(three.gateways[0], "words", body).status_code == 200


def refusals(answers: Sequence[httpx.Response]) -> list[httpx.Response]:
    assert {answer.status_code for answer in answers} <= {200, 429}
    return [answer for answer in answers if answer.status_code == 429]


def places_left(gateway: GatewayProcess, tenant: str) -> int:
    """Before and after the request that asks."""
    left = re.search(r'"concurrent";r=(\d+)', ask(gateway, tenant).headers["ratelimit"])
    assert left is not None
    return int(left[1]) + 1


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_fifty_equal_keys_are_one_execution_and_fifty_equal_answers(three: House, engine: Engine, stream: bool) -> None:
    taken = engine.taken()
    body = {"prompt": "What is Docker?", "max_tokens": 200, "ignore_eos": True, "stream": stream}
    answers = three.asked_at_once("twins", 50, body, **{"Idempotency-Key": f"fifty-{stream}"})
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert not stream or answers[0].content.endswith(DONE)
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert engine.taken() == taken + 1


def test_a_stream_goes_on_at_another_gateway_while_it_runs(three: House, engine: Engine) -> None:
    here, there, elsewhere = three.gateways
    taken = engine.taken()
    keyed = {"Idempotency-Key": "moving"}
    head = read_some(here, 20, **keyed)
    seen = {"Last-Event-ID": str(head.count(b"\n\n"))}
    with there.http.stream("POST", COMPLETIONS, json=LONG, headers=signed("twins", **keyed, **seen)) as answer:
        parts = answer.iter_raw()
        tail = next(parts)
        assert engine.at_work() == 1
        tail += b"".join(parts)
    assert head + tail == ask(elsewhere, "twins", LONG, **keyed).content
    assert tail.endswith(DONE)
    assert engine.taken() == taken + 1


# --- usage ------------------------------------------------------------------------------------------------------------


def test_the_usage_is_the_same_at_each_gateway_and_what_the_engine_counted(three: House, engine: Engine) -> None:
    assert comes_true(lambda: engine.at_work() == 0, 5)
    before = counted_by(engine)
    answers = three.asked_at_once("counted", 30, SHORT | {"max_tokens": 20})
    told = sum(answer.raise_for_status().json()["usage"]["total_tokens"] for answer in answers)
    assert counted_by(engine) == before + told
    assert comes_true(lambda: all(used(each, "counted") == ("cluster", 30, told) for each in three.gateways), 10)


def counted_by(engine: Engine) -> int:
    return int(engine.sum_of("vllm:prompt_tokens_total") + engine.sum_of("vllm:generation_tokens_total"))


# --- a gateway is killed ----------------------------------------------------------------------------------------------


def test_what_a_killed_gateway_held_comes_back(three: House, engine: Engine) -> None:
    here, there, _ = three.gateways
    keyed = {"Idempotency-Key": "orphan"}
    with ExitStack() as stack:
        owner = stack.enter_context(running(three.gateway("owner")))
        for _ in range(HELD):
            stack.enter_context(Raw(owner.port)).say(raw_request("held", ENDLESS)).until(b"data: ")
        begun, follower = (stack.enter_context(Raw(each.port)) for each in (owner, here))
        for client in (begun, follower):
            client.say(raw_request("owners", LONG, **keyed)).until(b"id: 5\n")
        taken = engine.taken()
        owner.kill()
        killed_at = time.monotonic()
        assert refusals([ask(there, "held")])[0].json()["error"]["code"] == "concurrency"
        for early in three.asked_at_once("owners", 3, LONG, **keyed):
            assert early.status_code == 200
            assert DONE in early.content or INTERRUPTED in early.content
        assert DONE not in begun.until(b"0\r\n\r\n")
        assert INTERRUPTED in follower.until(b"0\r\n\r\n")
    assert time.monotonic() < killed_at + KEY_LEASE_S + 1
    answers = three.asked_at_once("owners", 9, LONG, **keyed)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].content.endswith(DONE)
    assert engine.taken() == taken + 1
    assert comes_true(lambda: ask(there, "held").status_code == 200, LEASE_S)
    assert killed_at + LEASE_S / 2 < time.monotonic() < killed_at + LEASE_S + 1
    assert comes_true(lambda: engine.at_work() == 0, 2)


# --- Redis goes, and comes back ---------------------------------------------------------------------------------------


class Caller(threading.Thread):
    """Asks one gateway for one thing after the other, until it is told to end, and writes down what it got."""

    def __init__(self, gateway: GatewayProcess) -> None:
        super().__init__()
        self.statuses: set[int] = set()
        self.took_s: list[float] = []
        self.tokens = 0
        self._gateway = gateway
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.01):
            began = time.monotonic()
            answer = ask(self._gateway, "lasting")
            self.took_s.append(time.monotonic() - began)
            self.statuses.add(answer.status_code)
            self.tokens += answer.json().get("usage", {}).get("total_tokens", 0)

    def end(self) -> None:
        self._over.set()
        self.join()


def test_redis_goes_and_comes_back_and_what_needs_no_key_is_answered_all_the_while(pair: House) -> None:
    callers = [Caller(gateway) for gateway in pair.gateways]
    try:
        time.sleep(RENEWED_S + 0.5)  # now each knows that they are two
        asked_before = [len(caller.took_s) for caller in callers]
        pair.redis.pause()
        assert pair.is_without_redis()
        assert granted(pair, "minute", MINUTE) == [MINUTE / 2, MINUTE / 2]
        pair.redis.resume()
        assert pair.has_redis()
        pair.redis.kill()
        assert pair.is_without_redis()
        pair.redis.start()
        assert pair.has_redis()
        assert 0 < sum(granted(pair, "minute", MINUTE)) <= MINUTE + 2, "this Redis knows of nothing yet"
    finally:
        for caller in callers:
            caller.end()
    for caller, before in zip(callers, asked_before, strict=True):
        assert caller.statuses == {200}
        assert_few_waited(caller.took_s[:before], caller.took_s[before:])
    told = sum(len(caller.took_s) for caller in callers), sum(caller.tokens for caller in callers)
    assert comes_true(lambda: all(used(gateway, "lasting") == ("cluster", *told) for gateway in pair.gateways), 10)


def granted(house: House, tenant: str, limit: int) -> list[int]:
    """By each gateway, when more is asked for at once than there is."""
    answers = house.asked_at_once(tenant, 3 * limit, SHORT)
    assert all(int(refused.headers["retry-after"]) >= 1 for refused in refusals(answers))
    by_port = Counter(answer.url.port for answer in answers if answer.status_code == 200)
    return [by_port[gateway.port] for gateway in house.gateways]


def assert_few_waited(before: list[float], after: list[float]) -> None:
    """Those at the moment when Redis went. If each had, it would be all of them."""
    usual = statistics.median(before)
    assert statistics.median(after) < usual + REDIS_TIMEOUT_S / 2
    assert sum(took > usual + REDIS_TIMEOUT_S for took in after) <= len(after) / 10


def used(gateway: GatewayProcess, tenant: str) -> tuple[str, int, int]:
    """As this gateway tells it: of whom, requests and tokens."""
    page = gateway.http.get("/admin/usage", params={"tenant": tenant}, headers=signed(ADMIN)).raise_for_status().json()
    totals = page["totals"]
    return page["scope"], totals["requests"], totals["prompt_tokens"] + totals["completion_tokens"]


def raw_request(tenant: str, body: dict[str, Any], **headers: str) -> bytes:
    return request(COMPLETIONS, body, *(f"{name}: {value}" for name, value in signed(tenant, **headers).items()))


def read_some(gateway: GatewayProcess, events: int, **headers: str) -> bytes:
    """Of a long stream, whole events; then its client is gone."""
    got = b""
    with gateway.http.stream("POST", COMPLETIONS, json=LONG, headers=signed("twins", **headers)) as answer:
        for part in answer.iter_raw():
            got += part
            if got.count(b"\n\n") >= events:
                break
    return got.rpartition(b"\n\n")[0] + b"\n\n"
