"""Python is set for a gateway by the time that it serves."""

import gc
import sys
from collections.abc import Iterator

import pytest

from app.gateway import interpreter
from tests.gateway.conftest import House
from tests.support.server import serving


@pytest.fixture
def set_back() -> Iterator[None]:
    thresholds, let_go_s = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(700)
    sys.setswitchinterval(0.005)
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(let_go_s)


async def test_what_serves_is_left_alone_by_the_collector_and_by_other_threads(house: House, set_back: None) -> None:
    async with serving(house.gateway):
        assert gc.get_threshold()[:2] == (interpreter.NEW_OBJECTS, interpreter.YOUNG_LOOKS)
        assert gc.get_freeze_count() > 10_000
        assert sys.getswitchinterval() == pytest.approx(interpreter.LET_GO_S)
