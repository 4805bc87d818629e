"""A process that may open no more files."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD = 3
"""Input, output and errors are open. A new file would have a higher number, as all others that are open have."""


@contextmanager
def no_more_files() -> Iterator[None]:
    """For this process, as the system itself says it. What is open stays so."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (STANDARD, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
