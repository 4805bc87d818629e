"""`gllm start-cluster` as GLLM's README starts it, with real workers and engines on the CPU; and what its README does
with it. `--engine transformers` is all that is added.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from gllm import GLLM
from tests.support.processes import clean_environment, comes_true
from tests.support.start_cluster import MODEL, READY, STARTING_S, Cluster, complete, gllm

pytestmark = pytest.mark.timeout(2 * STARTING_S)

COMPLETION = """
import gllm

# Connect to cluster
client = gllm.GLLM("{url}")

# Load model and wait for readiness
client.load_model("{model}")
client.wait_for_health()

# Get completions
response = client.get_completions(
    model="demo",
    prompt="Tell me a joke about programming",
    max_tokens=100,
    temperature=0.7,
    return_mode="primitives"
)
print(response[0])
"""

PARALLEL = """
import gllm
from concurrent.futures import ThreadPoolExecutor

client = gllm.GLLM("{url}")
client.load_model("{model}")
client.wait_for_health()

def get_completion(prompt):
    return client.get_completions(
        model="demo",
        prompt=prompt,
        max_tokens=100,
        temperature=0.7,
        return_mode="primitives"
    )[0]

prompts = [f"Tell me a joke about {{topic}}" for topic in ["cats", "dogs", "birds", "fish"]]

# Submit 4 parallel requests
with ThreadPoolExecutor(max_workers=4) as executor:
    futures = [executor.submit(get_completion, p) for p in prompts]
    results = [future.result() for future in futures]

for prompt, result in zip(prompts, results):
    print(f"\\n{{prompt}}\\n{{result}}\\n{{'-'*50}}")
"""

CONVERSATION = """
import gllm

client = gllm.GLLM("{url}")
client.load_model("{model}")
client.wait_for_health()

messages = [
    {{"role": "system", "content": "You are a helpful coding assistant"}},
    {{"role": "user", "content": "How do I reverse a list in Python?"}}
]

response = client.get_chat_completion(
    model="demo",
    messages=messages,
    max_tokens=200,
    temperature=0.5,
    return_mode="openai"
)

print(response.choices[0].message.content)
"""


@pytest.fixture(scope="module")
def cluster(logs: Path) -> Iterator[Cluster]:
    started = Cluster("cluster", logs, "--load-model", MODEL)
    try:
        started.await_text(READY)
        yield started
    finally:
        started.end()
        left = started.mark.processes()
    assert left == []


# --- as the README of GLLM has it ---------------------------------------------------------------------------------


def test_it_serves_and_says_where(cluster: Cluster) -> None:
    assert f"serves demo at {cluster.url} " in cluster.text
    command = re.findall(r"  (curl -N .*)", cluster.text)[0]
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "data: [DONE]" in done.stdout


def test_workers_and_engines_are_on_their_ports(cluster: Cluster) -> None:
    for number in (0, 1):
        port = cluster.first_port + 100 * number
        assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{port + 10}/health", trust_env=False).status_code == 200


@pytest.mark.parametrize("example", [COMPLETION, PARALLEL, CONVERSATION])
def test_an_example_of_gllm_runs_unchanged(cluster: Cluster, tmp_path: Path, example: str) -> None:
    code = example.format(url=cluster.url, model=MODEL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        env=clean_environment(),
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_openai_client_needs_no_v1(cluster: Cluster) -> None:
    with openai.OpenAI(base_url=cluster.url, api_key="dummy", max_retries=0) as client:
        chat = client.chat.completions.create(
            model="demo",
            messages=[
                {"role": "system", "content": "You are a helpful assistant"},
                {"role": "user", "content": "Write a haiku about recursion"},
            ],
            max_tokens=100,
            temperature=0.8,
        )
        assert chat.choices[0].message.content
        text = client.completions.create(model="demo", prompt="The quick brown fox", max_tokens=50)
        assert text.choices[0].text


# --- looking after it ---------------------------------------------------------------------------------------------


def test_status_shows_both_workers(cluster: Cluster) -> None:
    done = gllm("status", url=cluster.url)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[:4] == ["WORKER", "STATE", "MODEL", "GPUS"]
    assert [row.split()[:3] for row in rows] == [["worker-0", "ready", "demo"], ["worker-1", "ready", "demo"]]


def test_logs_are_the_engines_own(cluster: Cluster) -> None:
    done = gllm("logs", "worker-1", "-n", "5", url=cluster.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    unknown = gllm("logs", "worker-7", url=cluster.url)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("gllm: ")


def test_a_drained_worker_gets_nothing_until_that_is_undone(cluster: Cluster) -> None:
    assert gllm("drain", "worker-0", url=cluster.url).returncode == 0
    assert comes_true(lambda: cluster.states() == ["draining", "ready"], 10, 0.2)
    assert complete(cluster.url)
    assert gllm("drain", "worker-0", "--undo", url=cluster.url).returncode == 0
    cluster.await_whole()


def test_a_load_that_fails_is_told_and_leaves_all_as_it_was(cluster: Cluster, tmp_path: Path) -> None:
    done = gllm("load", str(tmp_path), url=cluster.url)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("gllm: ")
    assert "\n  | " in done.stderr
    cluster.await_whole()


def test_a_model_is_loaded_under_another_name_while_answers_go_on(cluster: Cluster) -> None:
    done = gllm("load", MODEL, "--name", "other", "--name", "demo", url=cluster.url)
    assert done.returncode == 0, done.stderr
    assert "worker-0: " in done.stdout
    with GLLM(cluster.url) as client:
        assert client.get_completions("other", "Docker is", max_tokens=3, return_mode="primitives")


# --- what dies is started again -----------------------------------------------------------------------------------


def test_an_engine_that_is_killed_comes_back(cluster: Cluster) -> None:
    cluster.await_whole()
    port = str(cluster.first_port + 10)
    cluster.kill_one("app.engines.transformers", port)
    assert complete(cluster.url)  # the other one is there
    cluster.await_whole()


def test_a_worker_that_is_killed_comes_back_with_its_model(cluster: Cluster) -> None:
    cluster.await_whole()
    cluster.kill_one("worker", "worker-1")
    assert complete(cluster.url)
    cluster.await_text("worker-1 ended by itself: killed by SIGKILL. It is started again in 0.5 s.")
    cluster.await_text("worker-1 is back after ")
    cluster.await_whole()


def test_a_gateway_that_is_killed_comes_back_and_knows_its_workers(cluster: Cluster) -> None:
    cluster.await_whole()
    cluster.kill_one("serve", "--quiet")
    cluster.await_text("gateway is back after ")
    cluster.await_whole()


# --- who may command it ------------------------------------------------------------------------------------------


def test_with_tenants_it_listens_to_all_and_operators_need_a_key(logs: Path, tmp_path: Path) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.touch()
    made = {name: _key(tenants, name, *flags) for name, flags in {"boss": ["--admin"], "guest": []}.items()}
    started = Cluster("keyed", logs, workers="0", TENANTS_FILE=str(tenants), CLUSTER_SECRET="of-the-cluster")
    try:
        started.await_text("with 1 worker and no model")
        asked = {
            "nobody": gllm("status", url=started.url),
            "a stranger": gllm("status", url=started.url, GLLM_API_KEY="gllm-wrong"),
            "a guest": gllm("status", url=started.url, GLLM_API_KEY=made["guest"]),
            "an admin": gllm("status", url=started.url, GLLM_API_KEY=made["boss"]),
            "the cluster": gllm("status", url=started.url, CLUSTER_SECRET="of-the-cluster"),
        }
        codes = {who: (done.returncode, len(done.stderr.splitlines())) for who, done in asked.items()}
        assert codes == {
            "nobody": (1, 1),
            "a stranger": (1, 1),
            "a guest": (1, 1),
            "an admin": (0, 0),
            "the cluster": (0, 0),
        }
        assert "worker-0  empty" in asked["an admin"].stdout
        assert "on this machine only" not in started.text
    finally:
        started.end()
    assert started.mark.processes() == []


def _key(tenants: Path, name: str, *flags: str) -> str:
    return gllm("keys", "new", name, "--file", str(tenants), *flags, url="").stdout.strip()


# --- how it ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_of_it(logs: Path, number: signal.Signals) -> None:
    started = Cluster(f"ends-by-{number.name}", logs, "--load-model", MODEL, workers="0")
    try:
        started.await_text(READY)
        started.signal(number)
        assert started.wait(10) == 0
    finally:
        started.end()
    assert started.mark.processes() == []


def test_kill_9_leaves_nothing(logs: Path) -> None:
    started = Cluster("is-killed", logs, "--load-model", MODEL, workers="0")
    try:
        started.await_text(READY)
    finally:
        started.kill()
    assert comes_true(lambda: started.mark.processes() == [], 10)


def test_a_model_that_there_is_not_ends_it_with_the_engines_words(logs: Path, tmp_path: Path) -> None:
    started = Cluster("no-model", logs, "--load-model", str(tmp_path), workers="0")
    try:
        assert started.wait(STARTING_S) == 1
    finally:
        started.end()
    assert "\ngllm: " in started.text
    assert "\n  | " in started.text
    assert started.mark.processes() == []
