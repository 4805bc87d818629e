"""deploy/locust as it is run: on a real gateway over the real engine, and on something that breaks its promises."""

import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.pretender import pretending
from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import ROOT, Engine, GatewayProcess, Server, clean_environment, comes_true

LOCUST = (sys.executable, "-m", "locust", "-f", "locust/locustfile.py", "--headless")
STAYING = {"chat", "stream", "retry", "burst"}
FEW = "stream=2,chat=1"
BROKEN = 1

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Done:
    code: int
    said: str
    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    """By type and name."""

    def count(self, what: str, name: str | None = None) -> int:
        return sum(
            row["num_requests"] for (method, each), row in self.rows.items() if method == what and name in (None, each)
        )

    def p95_ms(self, what: str, name: str) -> float:
        times = {float(time): count for time, count in self.rows[what, name]["response_times"].items()}
        each = [time for time in sorted(times) for _ in range(times[time])]
        return each[int(len(each) * 0.95)]


@dataclass(frozen=True)
class Load:
    """The files as the container has them: in a folder `locust`, and nothing else of ours at hand."""

    folder: Path

    def run(self, host: str, *options: str, users: int = 3, seconds: int = 2, **env: str) -> Done:
        out = self.folder / "out"
        argv = [*LOCUST, "--host", host, "-u", str(users), "-r", "50", "-t", f"{seconds}s"]
        argv += ["--late", "10000", "--json-file", str(out), *options]
        done = self.locust(argv, **env)
        found = json.loads(out.with_suffix(".json").read_text())
        return Done(done.returncode, done.stderr, {(row["method"], row["name"]): row for row in found})

    def locust(self, argv: Sequence[str], **env: str) -> subprocess.CompletedProcess[str]:
        env = {**clean_environment(**env), "PYTHONPATH": ""}
        return subprocess.run(argv, capture_output=True, text=True, cwd=self.folder, env=env, timeout=120)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    shutil.copytree(ROOT / "deploy" / "locust", tmp_path / "locust", ignore=shutil.ignore_patterns("__pycache__"))
    return Load(tmp_path)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def engine(logs: Path) -> Iterator[Engine]:
    with running(Engine("engine", free_port(), logs, "--max-num-seqs", "16", "--max-queue", "48")) as process:
        yield process


@pytest.fixture
def gateway(engine: Engine, logs: Path, request: pytest.FixtureRequest) -> Iterator[GatewayProcess]:
    settings: dict[str, str] = getattr(request, "param", {})
    with running(GatewayProcess(request.node.name[:40], free_port(), logs, ENGINE_URLS=engine.url, **settings)) as it:
        yield it


# --- a real gateway ------------------------------------------------------------------------------------------------


def test_every_kind_of_user_does_its_work_and_a_real_gateway_keeps_all_promises(
    load: Load, gateway: GatewayProcess
) -> None:
    done = load.run(gateway.url, "--alone", "--think", "0.1", "--max-tokens", "24", "--csv", "run", users=13, seconds=8)
    assert done.code == 0, done.said
    assert {kind for kind in STAYING if done.count("POST", kind)} == STAYING
    assert done.count("hung up", "hangup") > 0
    assert done.count("replayed", "retry") > 0
    for what in ("ttft", "gap", "tpot", "tokens/s", "tokens"):
        assert done.count(what, "stream") > 0, what
    assert done.rows["tokens", "stream"]["total_content_length"] <= 24 * done.count("tokens", "stream")
    assert done.count("locust", "cpu, % of a core") >= 6
    with (load.folder / "run_stats.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"ttft", "tpot", "gap", "tokens/s", "hung up", "replayed"} <= {row["Type"] for row in rows}
    whole, calls = rows[-1], [row for row in rows if row["Type"] == "POST"]
    assert int(whole["Request Count"]) == sum(int(row["Request Count"]) for row in calls), "figures are not requests"


@pytest.mark.parametrize("gateway", [{"MAX_CONCURRENT_REQUESTS": "1", "QUEUE_CAPACITY": "1"}], indirect=True)
def test_what_a_full_gateway_refuses_is_counted_and_is_no_failure(load: Load, gateway: GatewayProcess) -> None:
    done = load.run(gateway.url, "--open", "--shape", "overload", "--crowd", FEW, "--alone", users=12, seconds=5)
    assert done.code == 0, done.said
    assert done.count("refused", "503 queue_full") > 5
    assert done.count("POST") > 0
    assert done.count("locust", "sent late") > 20


def test_callers_bring_the_keys_of_their_tenants(load: Load, engine: Engine, logs: Path, tmp_path: Path) -> None:
    file, command = tmp_path / "tenants.toml", list(GatewayProcess.SERVE[:-1])
    new = ["keys", "new", "--file", str(file)]
    made = [
        subprocess.run([*command, *new, *more], check=True, capture_output=True, text=True, cwd=tmp_path).stdout.strip()
        for more in (["alice"], ["bob"], ["ops", "--admin"])
    ]
    keys = tmp_path / "keys"
    keys.write_text(f"alice={made[0]}\nbob={made[1]}\n")
    settings = {"ENGINE_URLS": engine.url, "TENANTS_FILE": str(file)}
    with running(GatewayProcess("tenants", free_port(), logs, **settings)) as gateway:
        options = ("--keys", f"@{keys}", "--crowd", "chat=1,retry=1", "--max-tokens", "8", "--alone")
        done = load.run(gateway.url, *options, users=4, seconds=4, GLLM_API_KEY=made[2])
        blind = load.run(gateway.url, *options, users=4, seconds=1)
    assert done.code == 0, done.said
    assert {name for what, name in done.rows if what == "tenant"} == {"alice", "bob"}
    assert (blind.code, "the bill cannot be read" in blind.said) == (BROKEN, True)
    assert not [key for key in made if key in done.said + blind.said]


def test_several_processes_are_one_test(load: Load, gateway: GatewayProcess) -> None:
    """Nothing that workers have seen is lost, and they have ended before the bill is looked at."""
    options = ("--processes", "2", "--alone", "--crowd", "stream=1,retry=1,hangup=1", "--max-tokens", "8")
    done = load.run(gateway.url, *options, users=6, seconds=4)
    assert done.code == 0, done.said
    assert done.count("POST", "stream") > 0


# --- promises, each broken by somebody -----------------------------------------------------------------------------


def test_who_keeps_all_promises_passes(load: Load) -> None:
    with pretending() as server:
        done = load.run(server.url, "--alone", "--think", "0.05", users=13)
    assert done.code == 0, done.said
    assert {kind for kind in STAYING if done.count("POST", kind)} == STAYING


@pytest.mark.parametrize(
    ("vice", "found"),
    [
        ("refuses without retry-after", "503 queue_full without Retry-After in seconds"),
        ("error after done", "after its end a stream said"),
        ("done after error", "after its end a stream said [DONE]"),
        ("no end", "a stream ended without [DONE] or an error"),
        ("no usage", "a stream without the usage that was asked for"),
        ("half an answer", "half an answer"),
        ("executes twice", "two calls with one key, and both of them executed"),
        ("other bytes", "two answers to one key are not the same bytes"),
        ("charges twice", "charged for"),
        ("works on", "3 calls are still at work 5 s after everybody left"),
    ],
)
def test_a_broken_promise_is_found(load: Load, vice: str, found: str) -> None:
    with pretending(vice) as server:
        done = load.run(server.url, "--alone", "--think", "0.05", "--stop-timeout", "5", users=13)
    assert done.code == BROKEN, done.said
    assert f"BrokenPromise({found!r}"[:-1] in done.said or f'BrokenPromise("{found}' in done.said, done.said


def test_who_is_refused_comes_again_when_it_was_told_to(load: Load) -> None:
    with pretending("refuses") as server:
        done = load.run(server.url, "--crowd", "chat=1", "--think", "0", users=1, seconds=5)
        moments = server.seen
    assert done.code == 0, done.said
    assert len(moments) in (2, 3)
    assert all(after - before >= 2 for before, after in itertools.pairwise(moments))


def test_keys_whose_answers_were_cut_off_are_given_up(load: Load) -> None:
    with pretending(takes_s=30) as server:
        load.run(server.url, "--crowd", "retry=1", users=2, seconds=1)
        assert server.paths["DELETE"] >= 2


# --- what a figure is worth ----------------------------------------------------------------------------------------


def test_arrivals_on_a_schedule_see_the_waiting_that_patient_persons_hide(load: Load) -> None:
    """A server that does five calls a second. One person at a time waits 0.2 s each; ten a second pile up."""
    with pretending("slow", takes_s=0.2) as server:
        options = ("--crowd", "chat=1", "--think", "0")
        closed = load.run(server.url, *options, users=1, seconds=4)
        opened = load.run(server.url, *options, "--open", "--stop-timeout", "10", users=10, seconds=4)
    assert closed.p95_ms("POST", "chat") < 800
    assert opened.p95_ms("POST", "chat") > 1500


def test_what_a_call_took_counts_from_the_moment_at_which_it_was_due(load: Load) -> None:
    code = "import sys, time; from crowd.line import Line; due = time.perf_counter() - 5\n"
    code += "print(Line(sys.argv[1], 5).ask('GET', '/health', due=due).took_s)"
    with pretending() as server:
        env = {**clean_environment(), "PYTHONPATH": str(load.folder / "locust")}
        done = subprocess.run([sys.executable, "-c", code, server.url], env=env, capture_output=True, text=True)
    assert 5 < float(done.stdout) < 8, done.stderr


def test_objectives_decide_about_the_exit_code(load: Load) -> None:
    with pretending() as server:
        kept = load.run(server.url, "--crowd", FEW, "--slo", "ttft=30@99,tpot=30@99,availability=99")
        missed = load.run(server.url, "--crowd", FEW, "--slo", "ttft=0.001@99")
        doubtful = load.run(server.url, "--crowd", FEW, "--slo", "ttft=0.001@99", "--late", "-1")
    with pretending("refuses half") as server:
        refused = load.run(server.url, "--crowd", FEW, "--slo", "availability=90", "--think", "0")
    with pretending("limits half") as server:
        limited = load.run(server.url, "--crowd", FEW, "--slo", "availability=90", "--think", "0")
    assert (kept.code, "missed" in kept.said) == (0, False), kept.said
    assert (missed.code, "missed: ttft" in missed.said) == (1, True)
    assert (doubtful.code, "THE GENERATOR WAS THE LIMIT" in doubtful.said) == (2, True)
    assert (refused.code, "missed: availability " in refused.said) == (1, True)
    assert (limited.code, limited.count("refused") > 5) == (0, True), "a tenant's own limits are on nobody's account"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--crowd", "walk=1"], "--crowd: a crowd is KIND=WEIGHT"),
        (["--crowd", "chat=0"], "--crowd: a crowd of nobody"),
        (["--slo", "speed"], "--slo: an objective is"),
        (["--keys", "@/nowhere"], "--keys: /nowhere: No such file"),
        (["--shape", "round"], "--shape: invalid choice: 'round'"),
    ],
)
def test_a_wrong_option_stops_the_start_and_is_named(load: Load, options: list[str], said: str) -> None:
    done = load.locust([*LOCUST, "--host", "http://127.0.0.1:9", *options])
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def commands() -> list[str]:
    shown = re.findall(r"^make load .*?(?= *(?:#.*)?$)", (ROOT / "docs" / "load-tests.md").read_text(), re.MULTILINE)
    return [each for each in shown if "--help" not in each]


@pytest.mark.parametrize("command", commands())
def test_what_the_document_says_can_be_typed(command: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice=one\n")
    command = command.replace("@keys", f"@{tmp_path}/keys")
    _, _, options = command.partition('ARGS="')
    brief = f"{options.rstrip(chr(34))} --run-time 1s --late 10000 --exit-code-on-error 3"
    with pretending() as server:
        env = clean_environment(GLLM_URL=server.url)
        done = subprocess.run(["make", "load", f"ARGS={brief}"], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "answered, " in done.stderr


def test_the_image_is_of_the_version_that_is_tested() -> None:
    (locked,) = re.findall(r"^locust==(\S+)", (ROOT / "requirements" / "dev.lock").read_text(), re.MULTILINE)
    assert f"image: locustio/locust:{locked}\n" in (ROOT / "docker-compose.yml").read_text()


def test_the_web_page_starts_runs_and_says_what_is_wrong(load: Load) -> None:
    port = free_port()
    argv = [*LOCUST[:-1], "--web-host", "127.0.0.1", "--web-port", str(port)]
    env = {**clean_environment(), "PYTHONPATH": ""}
    with pretending() as server:
        page = Server("locust", [*argv, "--host", server.url], port, load.folder / "locust.log", env, load.folder)
        with running(page, "/"):
            form = {"user_count": "4", "spawn_rate": "4", "run_time": "2", "crowd": "walk=1", "shape": "overload"}
            assert page.http.post("/swarm", data=form).json()["success"]
            assert comes_true(lambda: "a crowd is KIND=WEIGHT" in page.log.read_text(), 10)
            assert page.http.post("/swarm", data={**form, "crowd": "stream=1"}).json()["success"]
            assert comes_true(lambda: "answered, " in page.log.read_text(), 20), page.tail()
            rows = {(row["method"], row["name"]) for row in page.http.get("/stats/requests").json()["stats"]}
    assert {("POST", "stream"), ("ttft", "stream")} <= rows
    assert ("POST", "chat") not in rows
