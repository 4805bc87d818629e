"""`gllm explain` as an operator types it: a real gateway, the real engine, and calls that went in all kinds of ways."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import running
from tests.e2e.test_cluster import Callers, Cluster
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, clean_environment, comes_true
from tests.support.sockets import Raw, request
from tests.support.tenancy import ADMIN, signed, write_tenants
from tests.support.upstream import Says, upstream

GLLM = GatewayProcess.SERVE[:-1]
COMPLETIONS = "/v1/completions"
SETTINGS = {"MAX_CONCURRENT_REQUESTS": "1", "QUEUE_CAPACITY": "1", "JOURNAL_REQUESTS": "40"}


@dataclass(frozen=True)
class Explained:
    gateway: GatewayProcess
    admin: str = ""

    def explain(self, *args: str, code: int = 0) -> str:
        env = clean_environment(GLLM_URL=self.gateway.url, **({"GLLM_API_KEY": self.admin} if self.admin else {}))
        done = subprocess.run([*GLLM, "explain", *args], capture_output=True, text=True, env=env, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ask(self, tenant: str = "", max_tokens: int = 4, headers: dict[str, str] | None = None) -> httpx.Response:
        body = {"prompt": "A container is", "max_tokens": max_tokens, "ignore_eos": True}
        return self.gateway.http.post(
            COMPLETIONS, json=body, headers={**(signed(tenant) if tenant else {}), **(headers or {})}
        )

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.explain("--json"))["requests"]
        return found

    def line_of(self, request_id: str) -> dict[str, Any]:
        """Its line in the log."""

        def found() -> list[dict[str, Any]]:
            lines = [line for line in self.gateway.log.read_text().splitlines() if line.startswith("{")]
            return [line for line in map(json.loads, lines) if line.get("request_id") == request_id]

        assert comes_true(lambda: bool(found()), 5)
        return found()[-1]


def id_of(answer: httpx.Response) -> str:
    return answer.headers["x-request-id"]


@pytest.fixture(scope="module")
def explained(engine: Engine, logs: Path) -> Iterator[Explained]:
    tenants = logs / "explained.toml"
    write_tenants(tenants, {"team": {}, "trial": {"requests_per_minute": 1, "tokens_per_minute": 1_000}})
    settings = {"ENGINE_URLS": engine.url, "TENANTS_FILE": str(tenants), **SETTINGS}
    with running(GatewayProcess("explained", free_port(), logs, **settings)) as gateway:
        yield Explained(gateway, signed(ADMIN)["authorization"].removeprefix("Bearer "))


def held(explained: Explained, *, stream: bool = True) -> Raw:
    """A call that keeps the only slot until it is left."""
    client = Raw(explained.gateway.port)
    asked = {"prompt": "On and on", "max_tokens": 1_900, "ignore_eos": True, "stream": stream}
    body = request(COMPLETIONS, asked)
    head, rest = body.split(b"\r\n", 1)
    client.say(head + b"\r\nauthorization: " + signed("team")["authorization"].encode() + b"\r\n" + rest)
    return client


def in_line(explained: Explained, client: Raw) -> str:
    """The id of the newest call, once it waits."""
    assert comes_true(lambda: explained.listed()[0]["state"] == "waiting", 20), client
    found: str = explained.listed()[0]["id"]
    return found


def idle(explained: Explained) -> None:
    assert comes_true(lambda: explained.gateway.in_flight() == 0, 10)


def test_a_served_call_is_explained_and_its_line_in_the_log_says_the_same(explained: Explained) -> None:
    answer = explained.ask("trial")
    text = explained.explain(id_of(answer))
    used = answer.json()["usage"]
    assert text.startswith(f"Request {id_of(answer)}: ok (200) after ")
    assert f"attempt 1 on {answer.headers['x-gllm-replica']}: no other replica could take it (only)" in text
    assert f"{used['prompt_tokens']} tokens read, 4 made" in text
    assert "tokens were reserved:" in text
    assert f" reserved, {used['total_tokens']} used, " in text
    call, line = json.loads(explained.explain(id_of(answer), "--json")), explained.line_of(id_of(answer))
    assert (line["event"], line["outcome"], line["tenant"], line["status"]) == ("request", "ok", "trial", 200)
    for ours, theirs in (
        ("intake_ms", "intake"),
        ("limits_ms", "limits"),
        ("route_ms", "route"),
        ("engine_ms", "engine"),
    ):
        assert line.get(ours, 0.0) == pytest.approx(call["spent"][theirs], abs=0.02)
    parts = call["spent"]["engine"] + call["spent"]["overhead"]
    assert parts == pytest.approx(call["duration_ms"], rel=0.2, abs=3.0)


def test_one_that_met_a_limit_says_which(explained: Explained) -> None:
    explained.ask("trial")
    refused = explained.ask("trial")
    assert refused.status_code == 429
    text = explained.explain(id_of(refused))
    assert "rate_limited (429)" in text
    assert "requests a minute: 0 left of 1" in text
    assert "Its client was told to come again in " in text
    assert id_of(refused) in explained.explain("--outcome", "rate_limited", "--tenant", "trial")


def test_one_that_waits_one_that_found_the_line_full_and_one_that_hung_up(explained: Explained) -> None:
    with held(explained) as running_call:
        running_call.until(b"data: ")
        with held(explained) as waiting:
            waits = in_line(explained, waiting)
            assert "still waiting, place 1 of 1" in explained.explain(waits)
            refused = explained.ask("team")
            assert (refused.status_code, refused.headers["x-gllm-reason"]) == (503, "queue_full")
            assert "Waiting already: 1, and none of them" in explained.explain(id_of(refused))
    idle(explained)
    text = explained.explain(waits)
    assert "client_gone (499)" in text
    (ran,) = [each for each in explained.listed() if each["outcome"] == "client_gone" and each["first_byte_ms"]]
    assert "by our own guess" in explained.explain(ran["id"])
    assert "Why: client_gone. The client is gone." in explained.explain("--last", "--outcome", "client_gone")


def test_one_that_waited_its_turn_says_how_long_and_behind_whom(explained: Explained) -> None:
    idle(explained)
    with held(explained) as running_call, ExitStack() as later:
        running_call.until(b"data: ")
        waiting = later.enter_context(held(explained))
        waits = in_line(explained, waiting)
        running_call.reset()
        waiting.until(b"data: ")
        text = explained.explain(waits)
        assert "still running" in text.splitlines()[0]
        assert "no replica had room: 0 ahead of it in the line, 0 waiting in all" in text
        assert "its turn after " in text
    idle(explained)


def test_a_replay_names_the_request_that_its_answer_was_made_for(explained: Explained) -> None:
    first, again = (explained.ask("team", headers={"idempotency-key": "explained-1"}) for _ in range(2))
    assert again.headers["idempotent-replayed"] == "true"
    text = explained.explain(id_of(again))
    assert f"it got the answer that is kept (made for {id_of(first)})" in text
    assert "attempt" not in text
    assert "attempt 1 on" in explained.explain(id_of(first))
    line = explained.line_of(id_of(again))
    assert (line["idempotency"], line["answered_by"]) == ("replayed", id_of(first))


def test_what_has_fallen_out_and_what_never_was_are_a_sentence_and_exit_code_1(explained: Explained) -> None:
    first = explained.ask("team")
    assert id_of(first) in explained.explain(id_of(first))
    for _ in range(40):
        explained.ask("nobody")  # a refused call is a call
    gone = explained.explain(id_of(first), code=1)
    assert gone.startswith("gllm: This request is not known here: this gateway keeps the last 40 that have ended")
    assert len(gone.splitlines()) == 1
    assert "its id is of gateway" in explained.explain("req-" + "0" * 24, code=1)


def test_who_is_no_admin_is_told_so(explained: Explained) -> None:
    stranger = Explained(explained.gateway, signed("team")["authorization"].removeprefix("Bearer "))
    assert stranger.explain(code=1) == "gllm: This takes the key of an admin.\n"


def test_a_call_that_failed_at_one_replica_and_was_answered_by_the_real_engine(engine: Engine, logs: Path) -> None:
    port = free_port()
    with upstream(port) as sick:
        settings = {"ENGINE_URLS": f"{sick.url},{engine.url}", "ROUTING_POLICY": "round_robin"}
        with running(GatewayProcess("tried", free_port(), logs, **settings)) as gateway:
            explained = Explained(gateway)
            assert comes_true(lambda: set(gateway.http.get("/health").json()["replicas"].values()) == {"ready"}, 10)
            sick.says += [Says(500)] * 2
            answers = [explained.ask() for _ in range(2)]
            (retried,) = [each for each in answers if each.headers["x-gllm-attempts"] == "2"]
            text = explained.explain(id_of(retried))
    names = [f"127.0.0.1:{port}", engine.url.removeprefix("http://")]
    assert f"attempt 1 on {names[0]}: it was its turn (turn)" in text
    assert f"{names[0]} failed after " in text
    assert f"attempt 2 on {names[1]}: no other replica could take it (only)" in text
    assert "tried already" in text
    assert "between attempts" in text


def test_a_call_that_waited_for_a_model_to_be_loaded(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        cluster.starts_worker("w1")
        cluster.becomes(w1="empty")
        cluster.loads("well-1", names=["chat"])
        with Callers(cluster, "chat") as callers:
            cluster.loads("well-2-slow1", names=["chat"])
        assert callers.statuses.keys() == {("chat", 200)}, callers.statuses
        explained = Explained(cluster.gateway)
        slowest = max(
            json.loads(explained.explain("--json", "--limit", "500"))["requests"], key=lambda each: each["queue_ms"]
        )
        assert slowest["queue_ms"] > 900
        text = explained.explain(slowest["id"])
    assert "no replica had room: " in text
    assert "its turn after 1." in text
    assert "ok (200)" in text
