"""The version is what its install wrote down, read without importing vLLM; one that nobody has tried is told."""

import shutil

from packaging.version import Version

from app.engines.vllm.versions import TESTED, installed
from tests.support.processes import GatewayProcess
from tests.support.vllm import ON_VLLM, VllmFleet

pytestmark = [*ON_VLLM]


def test_what_its_install_says_is_what_the_engine_says(vllm: VllmFleet) -> None:
    assert Version(installed(shutil.which("vllm") or "") or "").public == vllm.version.public


def test_only_a_tested_version_starts_without_a_word(vllm: VllmFleet, gateway: GatewayProcess) -> None:
    tested = vllm.version.public in TESTED
    assert ("new to this gateway" in gateway.log.read_text()) == (not tested)
