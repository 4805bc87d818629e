"""The version of a vLLM is known without importing it, and one that nobody has tried is told."""

from pathlib import Path

import pytest

from app.engines.vllm.versions import TESTED, TRACED_BY, can_trace, doubt, installed, untraced

DEBIAN = "lib/python3/dist-packages"


def install(at: Path, name: str, version: str, packages: str = "lib/python3.12/site-packages") -> None:
    metadata = at / packages / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")


def environment(at: Path, version: str, name: str = "vllm", packages: str = "lib/python3.12/site-packages") -> str:
    """As an install leaves it; its command."""
    install(at, name, version, packages)
    command = at / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    return str(command)


@pytest.mark.parametrize("packages", ["lib/python3.12/site-packages", "lib64/python3.11/site-packages", DEBIAN])
def test_the_version_is_what_the_install_wrote_down(tmp_path: Path, packages: str) -> None:
    assert installed(environment(tmp_path, "0.99.1", packages=packages)) == "0.99.1"


def test_a_command_that_is_a_link_is_the_one_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "bin" / "vllm"
    link.parent.mkdir(parents=True)
    link.symlink_to(environment(tmp_path / "environment", "0.99.1"))
    assert installed(str(link)) == "0.99.1"


def test_a_command_of_unknown_origin_has_no_version_and_raises_no_doubt(tmp_path: Path) -> None:
    command = environment(tmp_path, "3.0", name="vllm-router")
    assert installed(command) is None
    assert doubt(command) is None


@pytest.mark.parametrize("version", [*TESTED, f"{TESTED[0]}+cu130"])
def test_a_tested_version_raises_no_doubt_however_it_was_built(tmp_path: Path, version: str) -> None:
    assert doubt(environment(tmp_path, version)) is None


@pytest.mark.parametrize("version", ["0.99.1", f"{TESTED[0]}.dev7+g0123456", f"{TESTED[0]}rc1"])
def test_any_other_version_is_told_beside_the_tested_ones(tmp_path: Path, version: str) -> None:
    sentence = doubt(environment(tmp_path, version)) or ""
    assert f"vLLM {version} " in sentence
    assert TESTED[0] in sentence


def test_it_can_send_traces_only_with_all_that_it_takes(tmp_path: Path) -> None:
    command = environment(tmp_path, TESTED[0])
    for number, package in enumerate(TRACED_BY):
        assert not can_trace(command)
        lacking = ", ".join(TRACED_BY[number:])
        assert untraced(command) == f"vLLM's part of traces will be missing: its environment lacks {lacking}."
        install(tmp_path, package, "1.0")
    assert can_trace(command)
    assert untraced(command) is None
