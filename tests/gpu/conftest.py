"""What only a GPU shows: that engines are on it, that nobody else gets it, and that all of its memory comes back."""

import shutil
from pathlib import Path

import pytest

from app.cluster.gpus.inventory import Gpu, Inventory

ENGINES = ("transformers", "vllm")


@pytest.fixture(scope="session")
def inventory() -> Inventory:
    found = Inventory.here()
    assert found.gpus, found.lacking
    return found


@pytest.fixture(scope="session")
def gpu(inventory: Inventory) -> Gpu:
    return inventory.gpus[0]


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "vllm" and not shutil.which("vllm"):
        pytest.skip("there is no `vllm` on the PATH: `make test-gpu` installs it")
    return name


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")
