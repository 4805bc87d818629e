"""`gllm serve --processes 2`: to its clients it is one gateway, whatever becomes of one of its processes."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import running
from tests.e2e.test_cluster import Cluster
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, Site, alive, clean_environment, comes_true
from tests.support.redis_server import RedisServer, redis_server
from tests.support.sockets import Raw, request
from tests.support.tenancy import ADMIN, signed, write_tenants

pytestmark = pytest.mark.alone

COMPLETIONS = "/v1/completions"
SHORT = {"prompt": "Docker is", "max_tokens": 2}
LONG = {"prompt": "On and on", "max_tokens": 600, "ignore_eos": True, "stream": True}
MINUTE = 10


def impatient(**limits: float) -> tuple[str, ...]:
    """`gllm serve` whose parent waits for signs of life no longer than that."""
    python, option, script, command = GatewayProcess.SERVE
    words = "".join(f"several.{name} = {limit}; " for name, limit in limits.items())
    return python, option, f"from gllm.cli import several; {words}{script}", command


class Both:
    """The gateway, and each of its processes by its own port."""

    def __init__(self, gateway: GatewayProcess, first_port: int) -> None:
        self.gateway = gateway
        self.sites = [Site(first_port + number) for number in range(2)]

    def processes(self) -> list[int]:
        return processes_of(self.gateway)

    def answered(self) -> list[float]:
        """Calls, by process."""
        return [site.sum_of("llm_requests_total") for site in self.sites]

    def ask(self, tenant: str = "free") -> httpx.Response:
        """On a connection of its own, so that any process may get it."""
        with httpx.Client(base_url=self.gateway.url, trust_env=False, timeout=30) as client:
            return client.post(COMPLETIONS, json=SHORT, headers=signed(tenant))

    def ask_many(self, count: int, tenant: str = "free") -> Counter[int]:
        with ThreadPoolExecutor(8) as threads:
            return Counter(each.status_code for each in threads.map(lambda _: self.ask(tenant), range(count)))


def processes_of(gateway: GatewayProcess) -> list[int]:
    """Without their keepers, in the order of their numbers."""
    found = {}
    for pid in gateway.children():
        with suppress(OSError):  # it has ended meanwhile
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"gllm.cli" in words[:5]:
                found[int(words[words.index(b"--as-process") + 1])] = pid
    return [found[number] for number in sorted(found)]


@contextmanager
def several(
    name: str, engine: Engine, logs: Path, redis: RedisServer, argv: Sequence[str] = GatewayProcess.SERVE, **more: str
) -> Iterator[Both]:
    tenants, first_port = logs / f"{name}.toml", free_port()
    write_tenants(tenants, {"free": {}, "minute": {"requests_per_minute": MINUTE}})
    settings = {"ENGINE_URLS": engine.url, "TENANTS_FILE": str(tenants), "REDIS_URL": redis.url, "REDIS_TIMEOUT": "1"}
    settings |= {"METRICS_PORT": str(first_port), "PROCESSES": "2", "DRAIN_SECONDS": "10", **more}
    with running(GatewayProcess(name, free_port(), logs, argv, **settings), "/livez") as gateway:
        both = Both(gateway, first_port)
        assert comes_true(lambda: all(site.answers("/readyz") for site in both.sites), 60)
        yield both


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis-of-several")) as server:
        yield server


@pytest.fixture(scope="module")
def both(engine: Engine, logs: Path, redis: RedisServer) -> Iterator[Both]:
    with several("several", engine, logs, redis) as both:
        yield both


def test_both_answer_and_each_tells_what_it_did(both: Both) -> None:
    before = both.answered()
    assert both.ask_many(64) == {200: 64}
    here, there = (now - then for now, then in zip(both.answered(), before, strict=True))
    assert (here > 0, there > 0, here + there) == (True, True, 64)


def test_a_limit_is_exact_over_both(both: Both) -> None:
    assert both.ask_many(3 * MINUTE, "minute") == {200: MINUTE, 429: 2 * MINUTE}


def test_metrics_of_any_one_of_them_are_not_served_for_both(both: Both) -> None:
    answer = both.gateway.http.get("/metrics", headers=signed(ADMIN))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def explain(both: Both, *args: str, code: int = 0) -> str:
    key = signed(ADMIN)["authorization"].removeprefix("Bearer ")
    env = clean_environment(GLLM_URL=both.gateway.url, GLLM_API_KEY=key)
    command = [*GatewayProcess.SERVE[:-1], "explain", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def admin(both: Both, path: str) -> httpx.Response:
    """Asked on a connection of its own, so that any process may get it."""
    with httpx.Client(base_url=both.gateway.url, trust_env=False, timeout=30) as client:
        return client.get(path, headers=signed(ADMIN))


def test_a_request_is_explained_whichever_process_had_it_and_whichever_is_asked(both: Both) -> None:
    answered = [both.ask() for _ in range(12)]
    ids = [each.headers["x-request-id"] for each in answered]
    assert len({each[:8] for each in ids}) == 2  # both have had some
    pages = [admin(both, f"/admin/requests/{each}") for each in ids for _ in range(4)]
    assert {page.status_code for page in pages} == {200}
    for _ in range(4):
        assert {each["id"] for each in admin(both, "/admin/requests?limit=12").json()["requests"]} == set(ids)
    assert explain(both, ids[0]).startswith(f"Request {ids[0]}: ok (200)")
    unknown = explain(both, "req-" + "0" * 24, code=1)
    assert "its id is of gateway '0000', and the processes here are '" in unknown


def test_what_siblings_tell_each_other_is_told_to_nobody_else(both: Both) -> None:
    for headers in ({}, {"authorization": "Bearer x"}, signed(ADMIN)):
        answer = both.sites[0].http.get("/siblings/requests?limit=5", headers=headers)
        assert answer.status_code == 404


def test_one_that_is_killed_comes_back_and_the_other_goes_on(both: Both) -> None:
    dead, other = both.processes()
    os.kill(dead, signal.SIGKILL)
    assert comes_true(lambda: not alive(dead), 5)
    assert both.ask_many(16) == {200: 16}
    assert comes_true(lambda: both.sites[0].answers("/readyz"), 30)
    back, same = both.processes()
    assert (back != dead, same) == (True, other)
    assert "gateway process 0 ended by itself: killed by SIGKILL" in both.gateway.log.read_text()
    before = both.answered()
    assert both.ask_many(64) == {200: 64}
    assert all(now > then for now, then in zip(both.answered(), before, strict=True))


def test_another_gateway_is_not_let_in_between_them(both: Both, logs: Path, engine: Engine, redis: RedisServer) -> None:
    """Not even one of several, whose processes could take a part of the connections."""
    settings = {"ENGINE_URLS": engine.url, "REDIS_URL": redis.url, "PROCESSES": "2"}
    port = both.gateway.port
    late = GatewayProcess("late", port, logs, **settings, METRICS_PORT=str(free_port()))
    try:
        assert late.wait(20) == 1
        assert f"gllm: Port {port} on 127.0.0.1 is taken." in late.log.read_text()
    finally:
        late.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_stop_lets_answers_finish_and_leaves_nobody(
    engine: Engine, logs: Path, redis: RedisServer, number: signal.Signals
) -> None:
    with several(f"stopped-by-{number.name}", engine, logs, redis) as both, ExitStack() as stack:
        family = both.gateway.children()
        lines = [f"{name}: {value}" for name, value in signed("free").items()]
        clients = [stack.enter_context(Raw(both.gateway.port)) for _ in range(6)]
        for client in clients:
            client.say(request(COMPLETIONS, {**LONG, "max_tokens": 300}, *lines))
            client.until(b"data: ")
        assert sum(site.sum_of("gllm_streams_open") for site in both.sites) == len(clients)
        both.gateway.signal(number)
        for client in clients:
            client.until(b"data: [DONE]")
        assert both.gateway.wait(20) == 0
        assert not any(map(alive, family))
        said = both.gateway.log.read_text()
        assert said.count("2 gateway processes share") == said.count("Stopping. Running answers may finish") == 1


def test_when_the_parent_is_killed_its_processes_end(engine: Engine, logs: Path, redis: RedisServer) -> None:
    with several("orphans", engine, logs, redis) as both:
        family = both.gateway.children()
        both.gateway.kill()
        assert comes_true(lambda: not any(map(alive, family)), 10)


def test_asked_twice_it_ends_at_once(engine: Engine, logs: Path, redis: RedisServer) -> None:
    with several("twice", engine, logs, redis) as both, Raw(both.gateway.port) as client:
        family = both.gateway.children()
        client.say(request(COMPLETIONS, LONG, *[f"{name}: {value}" for name, value in signed("free").items()]))
        client.until(b"data: ")
        both.gateway.signal(signal.SIGINT)
        assert comes_true(lambda: "Stopping. Running answers may finish" in both.gateway.log.read_text(), 5)
        both.gateway.signal(signal.SIGINT)
        assert both.gateway.wait(5) == 130
        assert comes_true(lambda: not any(map(alive, family)), 10)


def test_when_a_keeper_is_killed_its_process_ends_and_both_are_replaced(
    engine: Engine, logs: Path, redis: RedisServer
) -> None:
    with several("keepers", engine, logs, redis) as both:
        first, other = both.processes()
        os.kill(parent_of(first), signal.SIGKILL)
        assert comes_true(lambda: not alive(first), 5)
        assert both.ask_many(8) == {200: 8}
        assert comes_true(lambda: both.sites[0].answers("/readyz"), 30)
        back, same = both.processes()
        assert (back != first, same) == (True, other)


def test_one_that_hangs_is_killed_and_replaced_and_the_other_goes_on(
    engine: Engine, logs: Path, redis: RedisServer
) -> None:
    with several("hangs", engine, logs, redis, impatient(HUNG_S=6)) as both:
        hung, other = both.processes()
        os.kill(hung, signal.SIGSTOP)
        assert comes_true(lambda: not alive(hung), 20)
        assert both.ask_many(8) == {200: 8}
        assert comes_true(lambda: both.sites[0].answers("/readyz"), 30)
        back, same = both.processes()
        assert (back != hung, same) == (True, other)
        said = both.gateway.log.read_text()
        assert "gllm: gateway process 0 gave no sign of life for 6 s, and was killed. It is started again in" in said


def test_one_that_does_not_come_up_ends_all_and_is_told(engine: Engine, logs: Path, redis: RedisServer) -> None:
    settings = {"ENGINE_URLS": engine.url, "REDIS_URL": redis.url, "PROCESSES": "2", "METRICS_PORT": str(free_port())}
    gateway = GatewayProcess("stuck", free_port(), logs, impatient(START_WITHIN_S=10), **settings)
    try:
        assert comes_true(lambda: len(processes_of(gateway)) == 2, 30)
        family = gateway.children()
        os.kill(processes_of(gateway)[1], signal.SIGSTOP)
        assert gateway.wait(60) == 1
        assert not any(map(alive, family))
        said = gateway.log.read_text()
        assert "gllm: gateway process 1 did not come up within 10 s, and was killed.\n" in said
        assert "started again" not in said
    finally:
        gateway.end()


def test_streams_of_one_are_not_harmed_when_the_other_is_killed(engine: Engine, logs: Path, redis: RedisServer) -> None:
    with several("streams", engine, logs, redis) as both, ExitStack() as stack:
        lines = [f"{name}: {value}" for name, value in signed("free").items()]
        clients = [stack.enter_context(Raw(both.gateway.port)) for _ in range(12)]
        for client in clients:
            client.say(request(COMPLETIONS, {**LONG, "max_tokens": 300}, *lines))
            client.until(b"data: ")
        open_there = int(both.sites[1].sum_of("gllm_streams_open"))
        os.kill(both.processes()[0], signal.SIGKILL)
        assert sum(map(ends_well, clients)) == open_there > 0


def test_together_they_keep_to_the_numbers_that_are_set(engine: Engine, logs: Path, redis: RedisServer) -> None:
    numbers = {"MAX_CONCURRENT_REQUESTS": "3", "QUEUE_CAPACITY": "5", "JOURNAL_REQUESTS": "1"}
    with several("parts", engine, logs, redis, **numbers) as both:
        slots = [site.sum_of("gllm_replica_slots") for site in both.sites]
        places = [site.sum_of("gllm_queue_places") for site in both.sites]
        assert (slots, places) == ([2, 1], [3, 2])
        told = "MAX_CONCURRENT_REQUESTS=3 (1 or 2), QUEUE_CAPACITY=5 (2 or 3), QUEUE_CAPACITY_TOKENS=1000000 (500000)"
        assert comes_true(lambda: told in both.gateway.log.read_text(), 5)
        assert "JOURNAL_REQUESTS=1 (1, 2 together)" in both.gateway.log.read_text()


def test_what_one_of_them_knows_of_workers_and_does_to_them_all_tell(tmp_path: Path, redis: RedisServer) -> None:
    several = {"PROCESSES": "2", "METRICS_PORT": str(free_port()), "REDIS_URL": redis.url, "REDIS_TIMEOUT": "1"}
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack, **several)
        cluster.starts_worker("w1")

        def rows() -> list[dict[str, Any]]:
            """As several connections are told, each of which any process may get."""
            return [row for _ in range(8) for row in cluster.asked("GET", "/admin/workers").json()["workers"]]

        assert comes_true(lambda: [row["state"] for row in rows()] == ["empty"] * 8, 60), cluster.tails()
        cluster.loads("well-1", names=["chat"])
        assert comes_true(lambda: [row.get("slots") for row in rows()] == [32] * 8, 60), cluster.tails()
        for _ in range(3):
            began = cluster.asked("POST", "/admin/models", {"model": "well-2-slow9", "names": ["chat"]})
            assert began.status_code == 202, began.text
            seen = [cluster.asked("GET", "/admin/swap").json() for _ in range(4)]
            assert {each["id"] for each in seen} == {began.json()["id"]}
            assert cluster.asked("DELETE", "/admin/swap").json()["outcome"] == "cancelled"


def ends_well(client: Raw) -> bool:
    try:
        return client.until(b"data: [DONE]").endswith(b"[DONE]")
    except ConnectionResetError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def hopeless(engine: Engine, logs: Path, redis: RedisServer, **settings: str) -> tuple[int, str]:
    """How one ended that could not start, and what it said."""
    settings = {"ENGINE_URLS": engine.url, "REDIS_URL": redis.url, "PROCESSES": "2", **settings}
    gateway = GatewayProcess("hopeless", free_port(), logs, **settings)
    try:
        assert comes_true(lambda: len(gateway.children()) > 1 or not gateway.running, 30)
        family = gateway.children()
        code = gateway.wait(30)
        assert not any(map(alive, family))
        return code, gateway.log.read_text()
    finally:
        gateway.end()


def test_a_port_that_one_of_them_cannot_have_is_told_at_once(engine: Engine, logs: Path, redis: RedisServer) -> None:
    """The second one's for metrics is the engine's, who would answer there."""
    code, said = hopeless(engine, logs, redis, METRICS_PORT=str(engine.port - 1))
    assert (code, said.count("\n")) == (1, 1)
    assert f"gllm: Port {engine.port} on 127.0.0.1 is taken." in said


def test_what_cannot_start_says_why_and_is_not_tried_for_ever(engine: Engine, logs: Path, redis: RedisServer) -> None:
    tenants = logs / "no-such-file.toml"
    code, said = hopeless(engine, logs, redis, METRICS_PORT=str(free_port()), TENANTS_FILE=str(tenants))
    assert code > 0
    assert str(tenants) in said
    assert "started again" not in said
