"""What stops the stack before it starts, and what it finds there when it does."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.docker import preflight
from deploy.docker.services import CHECKOUT, services


def environment(file: Path, **of_env: str) -> dict[str, str]:
    """What the container gets: `.env`, and over it what docker-compose.yml says."""
    said = services(of_env)["preflight"]["environment"]
    return {**of_env, **said, "CLUSTER_SECRET_FILE": str(file)}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return tmp_path / "cluster"


def test_without_a_word_the_stack_starts_with_a_secret_of_its_own(secret: Path) -> None:
    assert preflight.main(environment(secret)) == 0
    assert len(secret.read_text()) > 30
    assert stat.S_IMODE(secret.stat().st_mode) == 0o400


def test_the_secret_stays_from_start_to_start(secret: Path) -> None:
    preflight.main(environment(secret))
    first = secret.read_text()
    preflight.main(environment(secret))
    assert secret.read_text() == first
    assert os.listdir(secret.parent) == ["cluster"]


def test_a_given_secret_is_the_one_and_a_half_written_one_is_no_hindrance(secret: Path) -> None:
    preflight.main(environment(secret))
    secret.with_suffix(".new").write_text("ha")
    preflight.main(environment(secret, CLUSTER_SECRET="chosen"))
    assert secret.read_text() == "chosen"


@pytest.mark.parametrize(
    ("of_env", "sentence"),
    [
        ({"QUEUE_CAPACITY": "many"}, "QUEUE_CAPACITY must be a whole number, not 'many'."),
        ({"QUEUE_CAPACTY": "1"}, "The environment sets QUEUE_CAPACTY, which is not a setting"),
        (
            {"GRAFANA_PASWORD": "x"},
            "The environment sets GRAFANA_PASWORD, which is not a setting; did you mean GRAFANA_",
        ),
        ({"GATEWAY_BIND": "0.0.0.0"}, "PUBLISHED_HOST (GATEWAY_BIND for Compose)=0.0.0.0 is reachable from other"),
        ({"GRAFANA_BIND": "0.0.0.0"}, "GRAFANA_BIND=0.0.0.0 is reachable from other machines: GRAFANA_PASSWORD must"),
        ({"GRAFANA_BIND": "0.0.0.0", "GRAFANA_PASSWORD": "admin"}, "GRAFANA_BIND=0.0.0.0 is reachable from other"),
    ],
)
def test_a_wrong_value_ends_the_start_with_its_name(
    secret: Path, capsys: pytest.CaptureFixture[str], of_env: dict[str, str], sentence: str
) -> None:
    assert preflight.main(environment(secret, **of_env)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"gllm: {sentence}")
    assert said.endswith("gllm: neither gateway nor engine was started. Correct .env, and start again.\n")
    assert not secret.exists()


def test_all_that_is_wrong_is_told_at_once(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preflight.main(environment(secret, MAX_TOKENS="0", GRAFANA_BIND="0.0.0.0"))
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize(
    "of_env",
    [
        {"GATEWAY_BIND": "0.0.0.0", "TENANTS_FILE": "/keys/tenants.toml"},
        {"GATEWAY_BIND": "0.0.0.0", "ALLOW_ANONYMOUS": "true"},
        {"GRAFANA_BIND": "0.0.0.0", "GRAFANA_PASSWORD": "correct horse battery"},
        {"HOST": "192.0.2.1", "STATE_DIR": ".elsewhere", "METRICS_HOST": "127.0.0.1"},
    ],
)
def test_what_is_said_on_purpose_is_taken(secret: Path, of_env: dict[str, str]) -> None:
    assert preflight.main(environment(secret, **of_env)) == 0


def test_it_is_a_program(secret: Path) -> None:
    given = {**environment(secret, PROBE_INTERVAL="0"), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, str(Path(preflight.__file__))], env=given, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "gllm: PROBE_INTERVAL must be more than 0, not '0'.")
