"""Which version this is."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("gllm")
except PackageNotFoundError:  # run from a checkout that was never installed
    VERSION = "0.0.0"
