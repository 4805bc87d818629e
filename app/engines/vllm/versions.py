"""Which vLLM this gateway has been tried with, and which one it is about to start."""

from importlib.metadata import distributions
from pathlib import Path

TESTED = ("0.32.0", "0.31.0", "0.29.0", "0.27.1")
"""`make test-vllm` has run with these; what it skips on an older one stands in docs/engines.md."""


TRACED_BY = (
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-exporter-otlp-proto-http",
)
"""Without one of these vLLM does not start where it is told to send traces. Its own install brings them."""


def installed(executable: str, package: str = "vllm") -> str | None:
    """The version that a `vllm` command belongs to, by what its install wrote beside it; `None` where that is unknown.

    To import it or to ask the command takes many seconds.
    """
    environment = Path(executable).resolve().parent.parent
    packages = [str(folder) for folder in environment.glob("lib*/python3*/*-packages")]
    return next((found.version for found in distributions(name=package, path=packages)), None)


def can_trace(executable: str) -> bool:
    return all(installed(executable, package) for package in TRACED_BY)


def untraced(executable: str) -> str | None:
    """A sentence about a vLLM that could not send traces."""
    missing = [package for package in TRACED_BY if installed(executable, package) is None]
    if not missing:
        return None
    return f"vLLM's part of traces will be missing: its environment lacks {', '.join(missing)}."


def doubt(executable: str) -> str | None:
    """A sentence about a version that nobody has tried."""
    version = installed(executable)
    if version is None or version.partition("+")[0] in TESTED:  # behind the plus is how it was built
        return None
    return f"vLLM {version} is new to this gateway, which was tested with {', '.join(TESTED)}: what it does may differ."
