"""The Dockerfiles, as they stand there: `make compose-smoke` builds them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.engines.vllm.versions import TESTED
from deploy.docker.services import CHECKOUT, services

OURS = CHECKOUT / "Dockerfile"
VLLM = CHECKOUT / "deploy" / "docker" / "vllm.Dockerfile"
IMAGES = [(OURS, "gateway"), (OURS, "transformers"), (VLLM, "vllm")]
LABELS = {f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses", "version", "revision")}

each_file = pytest.mark.parametrize("file", [OURS, VLLM], ids=lambda file: file.name)
each_image = pytest.mark.parametrize(("file", "target"), IMAGES, ids=[target for _, target in IMAGES])


def instructions(file: Path) -> list[str]:
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def stages(file: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in instructions(file):
        if begun := re.fullmatch(r"FROM \S+ AS (\S+)", each):
            found[begun[1]] = []
        if found:
            list(found.values())[-1].append(each)
    return found


def made_of(file: Path, target: str) -> list[str]:
    """A stage with those that it stands on."""
    known = stages(file)
    own = known[target]
    base = own[0].split()[1]
    return [*(made_of(file, base) if base in known else []), *own]


def last(file: Path, target: str, word: str) -> str:
    return [each for each in made_of(file, target) if each.startswith(f"{word} ")][-1].removeprefix(f"{word} ")


@each_file
def test_the_linter_has_nothing_to_say(file: Path) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint has no build for this machine")
    done = subprocess.run([linter, file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@each_image
def test_an_image_runs_as_a_number_and_hears_sigterm_itself(file: Path, target: str) -> None:
    assert last(file, target, "USER") == "10001:10001"
    assert last(file, target, "STOPSIGNAL") == "SIGTERM"
    for word in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(last(file, target, word)), list)  # no shell between


@each_image
def test_an_image_has_labels_and_a_health_check_that_needs_no_more_than_python(file: Path, target: str) -> None:
    assert set(re.findall(r'([\w.]+)="', last(file, target, "LABEL"))) == LABELS
    check = last(file, target, "HEALTHCHECK")
    assert "healthy.py" in check
    assert "-IS" in check


@each_image
def test_what_is_installed_is_locked(file: Path, target: str) -> None:
    """But torch, whose build depends on the machine, and what was built here from this checkout."""
    installs = [
        part for line in instructions(file) for part in line.split("&&") if re.search(r"\binstall\b.*--quiet", part)
    ]
    for install in installs:
        assert "--require-hashes" in install or "--no-index /wheels/*.whl" in install or '"${TORCH}"' in install


def test_the_torch_of_the_image_is_that_of_make_run() -> None:
    wanted = re.search(r"^TORCH \?= (\S+)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert wanted is not None
    assert f"ARG TORCH={wanted[1]}" in instructions(OURS)


def test_no_torch_is_near_the_gateway() -> None:
    assert "torch" not in " ".join(made_of(OURS, "gateway")).lower()
    assert "torch" not in (CHECKOUT / "requirements" / "gateway.lock").read_text()


def test_the_vllm_of_the_image_is_one_that_was_tested() -> None:
    base = re.search(r"^ARG VLLM_IMAGE=\S+:v(\S+)$", VLLM.read_text(), re.MULTILINE)
    assert base is not None
    assert base[1] in TESTED


@each_file
def test_the_bases_have_versions(file: Path) -> None:
    bases = re.findall(r"^ARG \w+_IMAGE=(\S+)$", file.read_text(), re.MULTILINE)
    assert len(bases) == 1
    assert re.search(r":v?\d+\.\d+", bases[0])


@each_file
def test_a_builder_of_old_understands_it(file: Path) -> None:
    assert "<<" not in file.read_text()
    assert "--mount" not in file.read_text()
    assert "--link" not in file.read_text()


def test_what_is_copied_is_let_in_and_nothing_else() -> None:
    let_in = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source.split("/")[0]
        for file in (OURS, VLLM)
        for line in instructions(file)
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied | {"deploy/docker"} == let_in


def test_compose_builds_targets_that_exist() -> None:
    for name, service in services({}).items():
        if "build" in service:
            file = CHECKOUT / service["build"].get("dockerfile", "Dockerfile")
            target = service["build"].get("target", "vllm")
            assert target in stages(file), name
            assert service["image"] == f"gllm-{target}:local"
