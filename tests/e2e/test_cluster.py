"""A gateway and its workers as processes: models come, change under load and go, and whatever is killed is mended."""

import shlex
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import ROOT, GatewayProcess, Server, clean_environment, comes_true

SCRIPTED = ROOT / "tests" / "cluster" / "worker" / "scripted.py"
WORKER = (sys.executable, "-c", "import sys; from gllm.cli import main; sys.exit(main())", "worker")
SECRET = "of-these-tests"
KEY = {"authorization": f"Bearer {SECRET}"}
PACE = {"CLUSTER_SECRET": SECRET, "HEARTBEAT_INTERVAL": "0.3", "WORKER_LEASE": "3", "SWAP_DRAIN_SECONDS": "20"}

SOON_S = 60.0
A_LOAD_S = 300.0
"""Several engines that import torch, on a machine that others use too."""
PER_SECOND = 20
ALLOWED_S = 60.0


class WorkerProcess(Server):
    def __init__(self, name: str, folder: Path, gateway: str, *args: str, port: int | None = None) -> None:
        self.gateway = gateway
        folder.mkdir(exist_ok=True)
        port = port or free_port()
        words = f"{shlex.quote(sys.executable)} {SCRIPTED} --host {{host}} --port {{port}} --model {{model}}"
        command = f"{words} --names {{name}} --folder {shlex.quote(str(folder))}"
        scripted = {} if "--engine" in args else {"ENGINE_TYPE": "command", "ENGINE_COMMAND": command}
        env = clean_environment(LOG_FORMAT="text", GATEWAY_URLS=gateway, **PACE, **scripted)
        argv = [*WORKER, "--name", name, "--port", str(port), *args]
        super().__init__(name, argv, port, folder / "said", env, folder)


class Cluster:
    def __init__(self, folder: Path, stack: ExitStack, **settings: str) -> None:
        self.folder = folder
        self.stack = stack
        self.settings = settings
        self.port = free_port()
        self.workers: dict[str, WorkerProcess] = {}
        self.gateway = self.starts_gateway()

    def starts_gateway(self) -> GatewayProcess:
        self.gateway = self.one_more_gateway("gateway", self.port)
        return self.gateway

    def one_more_gateway(self, name: str, port: int) -> GatewayProcess:
        gateway = GatewayProcess(name, port, self.folder, ENGINE_TYPE="workers", **PACE, **self.settings)
        return self.stack.enter_context(running(gateway, ready="/livez"))

    def starts_worker(self, name: str, *args: str, port: int | None = None) -> WorkerProcess:
        worker = WorkerProcess(name, self.folder / name, self.gateway.url, *args, port=port)
        self.workers[name] = worker
        self.stack.callback(worker.end)
        return worker

    def asked(self, method: str, path: str, body: Any = None, **how: Any) -> httpx.Response:
        return httpx.request(
            method, f"{self.gateway.url}{path}", json=body, headers=KEY, timeout=A_LOAD_S, trust_env=False, **how
        )

    def loads(self, model: str, **more: Any) -> dict[str, Any]:
        answer = self.asked("POST", "/admin/models", {"model": model, "wait": True, **more})
        assert answer.status_code == 200, f"{answer.text}\n{self.tails()}"
        account: dict[str, Any] = answer.json()
        return account

    def states(self) -> dict[str, str]:
        rows = self.asked("GET", "/admin/workers").json()["workers"]
        return {row["name"]: row["state"] if row.get("reachable", True) else "lost" for row in rows}

    def orders(self) -> dict[str, str]:
        rows = self.asked("GET", "/admin/workers").json()["workers"]
        return {row["name"]: row["order"]["model"] for row in rows if "order" in row}

    def becomes(self, limit_s: float = SOON_S, **states: str) -> float:
        took_s = comes_true(lambda: self.states() == states, limit_s)
        assert took_s, f"{self.asked('GET', '/admin/workers').text}\n{self.tails()}"
        return took_s

    def tails(self) -> str:
        return "\n".join(each.tail() for each in (self.gateway, *self.workers.values()))

    def complete(self, model: str, http: httpx.Client | None = None, at: Server | None = None) -> httpx.Response:
        gateway = at or self.gateway
        return (http or gateway.http).post(
            f"{gateway.url}/v1/completions",
            json={"model": model, "prompt": "Docker is", "max_tokens": 2},
            headers={"x-request-timeout-ms": str(int(ALLOWED_S * 1e3))},
            timeout=ALLOWED_S + 5,
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


@pytest.fixture
def pair(cluster: Cluster) -> Cluster:
    """Two workers with engines that do as their model's name says, and `chat` served by both."""
    for name in ("w1", "w2"):
        cluster.starts_worker(name)
    cluster.becomes(w1="empty", w2="empty")
    cluster.loads("well-1", names=["chat"])
    return cluster


class Callers:
    """So many calls a second, on a schedule that no answer slows down."""

    def __init__(self, cluster: Cluster, *models: str) -> None:
        self.answers: list[tuple[str, int, str, float]] = []
        self._cluster = cluster
        self._models = models
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> "Callers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def statuses(self) -> Counter[tuple[str, int]]:
        return Counter((model, status) for model, status, _, _ in self.answers)

    def _send(self) -> None:
        began, sent = time.monotonic(), 0
        no_limits = httpx.Limits(max_connections=None)  # whoever waits at the gateway keeps nobody waiting here
        with httpx.Client(limits=no_limits, trust_env=False) as http, ThreadPoolExecutor(1_000) as threads:
            while not self._over.wait(max(0.0, began + sent / PER_SECOND - time.monotonic())):
                threads.submit(self._call, http, self._models[sent % len(self._models)])
                sent += 1

    def _call(self, http: httpx.Client, model: str) -> None:
        began = time.monotonic()
        try:
            answer = self._cluster.complete(model, http)
        except httpx.HTTPError as error:
            self.answers.append((model, 0, repr(error), time.monotonic() - began))
        else:
            retry_after = answer.headers.get("retry-after", "")
            self.answers.append((model, answer.status_code, retry_after, time.monotonic() - began))


# --- models change --------------------------------------------------------------------------------------------------


def test_a_model_is_replaced_under_its_name_and_no_call_is_lost(pair: Cluster) -> None:
    with Callers(pair, "chat") as callers:
        time.sleep(1)
        account = pair.loads("well-2-slow1", names=["chat"])
        time.sleep(1)
    assert account["rounds"] == [["w1"], ["w2"]]
    assert pair.orders() == {"w1": "well-2-slow1", "w2": "well-2-slow1"}
    assert callers.statuses.keys() == {("chat", 200)}, callers.statuses
    assert len(callers.answers) > PER_SECOND


def test_with_one_worker_calls_wait_for_the_reload_and_none_is_lost(cluster: Cluster) -> None:
    cluster.starts_worker("w1")
    cluster.becomes(w1="empty")
    cluster.loads("well-1", names=["chat"])
    with Callers(cluster, "chat") as callers:
        time.sleep(0.5)
        cluster.loads("well-2-slow1", names=["chat"])
        time.sleep(0.5)
    assert callers.statuses.keys() == {("chat", 200)}, callers.statuses
    assert max(took_s for _, _, _, took_s in callers.answers) > 1, "some have waited"


def test_a_model_that_goes_and_one_that_comes_answer_or_say_honestly_why_not(pair: Cluster) -> None:
    with Callers(pair, "chat", "next") as callers:
        time.sleep(0.5)
        pair.loads("well-2-slow1", names=["next"])
        time.sleep(1)
    assert {status for model, status, _, _ in callers.answers if model == "next"} <= {200, 404}
    assert {status for model, status, _, _ in callers.answers if model == "chat"} <= {200, 404, 503}
    assert all(retry_after for _, status, retry_after, _ in callers.answers if status == 503)
    assert all(took_s < ALLOWED_S for _, _, _, took_s in callers.answers)
    assert callers.statuses["next", 200] > 5
    assert pair.complete("next").status_code == 200
    assert pair.complete("chat").status_code == 404


def test_a_load_that_fails_is_taken_back_and_says_why_while_calls_go_on(pair: Cluster) -> None:
    with Callers(pair, "chat") as callers:
        answer = pair.asked("POST", "/load_model", {"model_path": "bad-one", "wait": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "load_failed")
    assert "no such model: bad-one" in answer.json()["error"]["message"]
    assert pair.orders() == {"w1": "well-1", "w2": "well-1"}
    pair.becomes(w1="ready", w2="ready")
    assert callers.statuses.keys() == {("chat", 200)}, callers.statuses


def test_several_models_are_served_at_once_each_by_workers_of_its_own(pair: Cluster) -> None:
    pair.loads("well-2", names=["next"], workers=["w2"])
    listed = pair.asked("GET", "/v1/models").json()["data"]
    assert {each["id"] for each in listed} == {"chat", "next"}
    for model, worker in (("chat", "w1"), ("next", "w2")):
        answers = [pair.complete(model) for _ in range(4)]
        assert {(each.status_code, each.headers["x-gllm-replica"]) for each in answers} == {(200, worker)}
    assert pair.states() == {"w1": "ready", "w2": "ready"}


def test_of_two_changes_at_once_the_second_is_refused(pair: Cluster) -> None:
    first = pair.asked("POST", "/admin/models", {"model": "well-2-slow3", "names": ["chat"]})
    second = pair.asked("POST", "/load_model", {"model_path": "well-3"})
    assert (first.status_code, second.status_code, second.headers["retry-after"]) == (202, 409, "5")
    cancelled = pair.asked("DELETE", "/admin/swap").json()
    assert cancelled["outcome"] == "cancelled"
    pair.becomes(w1="ready", w2="ready")
    assert pair.orders() == {"w1": "well-1", "w2": "well-1"}


def test_gpus_are_released_and_a_new_worker_gets_what_all_were_told(pair: Cluster) -> None:
    pair.starts_worker("w3")
    pair.becomes(w1="ready", w2="ready", w3="ready")
    assert pair.orders()["w3"] == "well-1"
    assert pair.asked("POST", "/release_gpus", {"drain_s": 0}).text == "Gpus released"
    pair.becomes(w1="empty", w2="empty", w3="empty")
    assert pair.complete("chat").status_code == 503
    assert pair.asked("GET", "/v1/models").json()["data"] == []


def test_two_gateways_that_share_a_redis_share_workers_and_take_turns(tmp_path: Path, redis_url: str) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack, REDIS_URL=redis_url)
        other = cluster.one_more_gateway("other", free_port())
        cluster.starts_worker("w1")
        cluster.becomes(w1="empty")
        cluster.loads("well-1", names=["chat"])
        assert comes_true(lambda: cluster.complete("chat", at=other).status_code == 200, SOON_S), cluster.tails()
        cluster.asked("POST", "/admin/models", {"model": "well-2-slow3", "names": ["chat"]})
        refused = other.http.post("/load_model", json={"model_path": "well-3"}, headers=KEY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "load_in_progress")
        assert "Another gateway" in refused.json()["error"]["message"]
        assert cluster.complete("chat", at=other).status_code == 200, "it waits there, too"
        cluster.workers["w1"].end()
        assert comes_true(lambda: cluster.complete("chat", at=other).status_code == 503, SOON_S)


# --- whatever is killed ---------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_lost_and_comes_back_with_what_it_served(pair: Cluster) -> None:
    victim = pair.workers["w1"]
    victim.kill()
    pair.becomes(w1="lost", w2="ready")
    assert pair.complete("chat").status_code == 200
    pair.starts_worker("w1", port=victim.port)
    pair.becomes(w1="ready", w2="ready")
    assert pair.orders() == {"w1": "well-1", "w2": "well-1"}


def test_an_engine_that_is_killed_is_started_again_and_the_other_one_answers_meanwhile(pair: Cluster) -> None:
    with Callers(pair, "chat") as callers:
        family = psutil.Process(pair.workers["w1"].pid).children(recursive=True)
        engine = next(each for each in family if str(SCRIPTED) in each.cmdline() and not each.children())
        engine.kill()
        assert comes_true(lambda: pair.states()["w1"] != "ready", SOON_S, every_s=0.01)
        pair.becomes(w1="ready", w2="ready")
    assert {status for _, status in callers.statuses} == {200}, callers.statuses


def test_a_gateway_that_is_killed_in_the_middle_learns_all_anew_and_the_change_ends_well(pair: Cluster) -> None:
    pair.asked("POST", "/admin/models", {"model": "well-2-slow2", "names": ["chat"]})
    assert comes_true(lambda: pair.states()["w1"] == "loading", SOON_S)
    pair.gateway.kill()
    pair.starts_gateway()
    pair.becomes(w1="ready", w2="ready")
    assert pair.orders() == {"w1": "well-2-slow2", "w2": "well-1"}, "each has one of both, and serves"
    assert pair.complete("chat").status_code == 200
    pair.loads("well-2-slow2", names=["chat"])
    assert set(pair.orders().values()) == {"well-2-slow2"}


def test_a_frozen_worker_is_lost_and_back_when_it_goes_on(pair: Cluster) -> None:
    pair.workers["w2"].signal(signal.SIGSTOP)
    pair.becomes(w1="ready", w2="lost")
    pair.workers["w2"].signal(signal.SIGCONT)
    pair.becomes(w1="ready", w2="ready")


# --- the real engine ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(3 * A_LOAD_S)
def test_the_real_engine_changes_its_model_under_load(cluster: Cluster) -> None:
    demo, other = ROOT / "models" / "demo", cluster.folder / "other"
    shutil.copytree(demo, other)
    for name in ("w1", "w2"):
        cluster.starts_worker(name, "--engine", "transformers", "--gpus", "none")
    cluster.becomes(w1="empty", w2="empty")
    cluster.loads(str(demo))
    with Callers(cluster, "demo", "other") as callers:
        time.sleep(1)
        cluster.loads(str(other))
        time.sleep(1)
    assert callers.statuses["demo", 200] > PER_SECOND
    assert callers.statuses["other", 200] > 0
    assert {status for _, status in callers.statuses} <= {200, 404, 503}, callers.statuses
    assert all(retry_after for _, status, retry_after, _ in callers.answers if status == 503)
    assert cluster.complete("other").json()["choices"][0]["text"]
