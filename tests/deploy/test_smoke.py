"""`make compose-smoke` where nothing can be smoked; where it can, it is its own test."""

from pathlib import Path

import pytest

from deploy.docker import smoke

DOCKER = """#!/bin/sh
case "$*" in
  "info") exit {info} ;;
  "image inspect"*|"pull"*) exit {base} ;;
  "run --rm --network=none"*" true") echo "operation not permitted" >&2; exit {run} ;;
  *) echo "no space left on device" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs are; there are none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(path: Path, *, info: int, base: int, run: int = 0) -> None:
    docker = path / "docker"
    docker.write_text(DOCKER.format(info=info, base=base, run=run))
    docker.chmod(0o755)


def test_without_a_container_engine_it_says_so(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main() == 0
    assert "*** NOT TESTED: the images and docker-compose.yml; there is no container engine" in capsys.readouterr().out


def test_an_engine_that_does_not_answer_is_none(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(path, info=1, base=0)
    assert smoke.main() == 0
    assert "there is no container engine" in capsys.readouterr().out


def test_without_the_base_it_says_so(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(path, info=0, base=1)
    assert smoke.main() == 0
    assert "NOT TESTED: the images and docker-compose.yml; python:3.11-slim" in capsys.readouterr().out


def test_where_no_container_can_be_started_it_says_so(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(path, info=0, base=0, run=126)
    assert smoke.main() == 0
    assert "docker can start no container here: operation not permitted" in capsys.readouterr().out


def test_what_goes_wrong_after_that_is_a_failure(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(path, info=0, base=0)
    assert smoke.main() == 1
    assert "no space left on device" in capsys.readouterr().err
