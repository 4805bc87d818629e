"""One stack and one minute of its life for all tests here that look at a real Prometheus."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.minute import Minute, live_through
from tests.support.prometheus import NOT_TESTED, Prometheus, Series, executable
from tests.support.stack import Stack, stack

LONG_S = 600
"""The first test that looks waits for the minute, too, which is not its own time."""

ON_PROMETHEUS = [
    pytest.mark.skipif(executable() is None, reason=NOT_TESTED),
    pytest.mark.timeout(LONG_S),
]


@dataclass(frozen=True)
class Lived:
    """A stack that still runs, and what happened to it."""

    stack: Stack
    minute: Minute

    @property
    def prometheus(self) -> Prometheus:
        return self.stack.prometheus

    def seen(self, query: str) -> list[Series]:
        """All that the query gave in that minute."""
        return self.prometheus.over(query, self.minute.began, self.minute.ended)


@pytest.fixture(scope="package")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    with stack(tmp_path_factory.mktemp("stack")) as running:
        yield Lived(running, live_through(running, pause_s=0.25))
