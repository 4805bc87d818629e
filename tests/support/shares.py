"""How several processes share the tests: by whole files, so that what the tests of one have in common is made once."""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

TOGETHER = (
    ("tests/deploy/",),  # they look at one stack, and at a minute of its life that takes a minute
    ("tests/cluster/", "tests/service/"),  # they name ports by number, and a GPU 0 where no driver tells which
)


class Shares(LoadFileScheduling):  # type: ignore[misc]  # it ships no types
    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False  # a file of few tests may take long, and would come last
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        together = (" ".join(folders) for folders in TOGETHER if nodeid.startswith(folders))
        return next(together, super()._split_scope(nodeid))
