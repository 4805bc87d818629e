"""What `pip install .` installs."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import gllm

CHECKOUT = Path(__file__).parents[1]


def test_the_wheel_holds_the_service_the_command_and_the_demo_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    (wheel,) = tmp_path.iterdir()
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"gllm-{gllm.__version__}.dist-info/entry_points.txt").decode()
    assert {"app/main.py", "app/models/demo/config.json", "app/models/demo/model.safetensors"} <= names
    assert "gllm = gllm.cli:main" in entry_points
    assert {name.split("/")[0] for name in names} == {"app", "gllm", f"gllm-{gllm.__version__}.dist-info"}
    assert not [name for name in names if "corpus" in name or name.endswith("train.py")]
