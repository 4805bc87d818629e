"""Which vLLM this gateway has been tried with, and which one it is about to start."""

from importlib.metadata import distributions
from pathlib import Path

TESTED = ("0.32.0",)
"""`make test-vllm` has run with these."""


def installed(executable: str) -> str | None:
    """The version that a `vllm` command belongs to, by what its install wrote beside it; `None` where that is unknown.

    To import it or to ask the command takes many seconds.
    """
    environment = Path(executable).resolve().parent.parent
    packages = [str(folder) for folder in environment.glob("lib*/python3*/*-packages")]
    return next((found.version for found in distributions(name="vllm", path=packages)), None)


def doubt(executable: str) -> str | None:
    """A sentence about a version that nobody has tried."""
    version = installed(executable)
    if version is None or version.partition("+")[0] in TESTED:  # behind the plus is how it was built
        return None
    return f"vLLM {version} is new to this gateway, which was tested with {', '.join(TESTED)}: what it does may differ."
