"""The version is the one that is written down, and read without importing vLLM."""

import shutil

from app.engines.vllm.versions import TESTED, installed
from tests.support.processes import GatewayProcess
from tests.support.vllm import ON_VLLM, VllmFleet

pytestmark = [*ON_VLLM]


def test_what_its_install_says_is_what_the_engine_says(vllm: VllmFleet) -> None:
    told = vllm.engines["engine-0"].http.get("/version").json()["version"]
    assert installed(shutil.which("vllm") or "") == told
    assert told.partition("+")[0] in TESTED, f"these tests pass with {told}? Then write it into TESTED"


def test_a_tested_version_starts_without_a_word(gateway: GatewayProcess) -> None:
    assert "new to this gateway" not in gateway.log.read_text()
