"""A deadline that comes while a slow client takes its answer: what it has is never contradicted.

A server that holds too much for a client waits before it writes. A write that is cut then was never made.
"""

import asyncio
from typing import Any

import pytest

from app.engines.scripted import Scripted
from app.errors import Outcome
from tests.gateway.conftest import Build, House, asking
from tests.support.asgi import Exchange
from tests.support.clock import FakeClock
from tests.support.until import until

HEAD, BODY = 0, 1
PATIENT = {"WRITE_TIMEOUT": 1_000}
ONE_SECOND = [(b"content-type", b"application/json"), (b"x-request-timeout-ms", b"1000")]


class Dawdler(Exchange):
    """Lets the server wait before one of the messages, until it reads on."""

    def __init__(self, body: dict[str, Any], dawdles_at: int) -> None:
        super().__init__("/v1/chat/completions", body, headers=ONE_SECOND)
        self.dawdles = False
        self.reads_on = asyncio.Event()
        self._left = dawdles_at

    async def _send(self, message: dict[str, Any]) -> None:
        if self._left == 0:
            self.dawdles = True
            await self.reads_on.wait()
        self._left -= 1
        await super()._send(message)


async def _too_late(build: Build, asked: dict[str, Any], dawdles_at: int) -> tuple[Dawdler, House]:
    clock = FakeClock()
    house = await build(settings=PATIENT, clock=clock, only=Scripted(words=("Hello",)))
    client = Dawdler(asked, dawdles_at)
    running = asyncio.create_task(client.run(house.gateway.app))
    await until(lambda: client.dawdles)
    clock.advance(2)
    house.gateway.watch.sweep()
    await asyncio.sleep(0)
    client.reads_on.set()
    await running
    return client, house


async def test_before_the_head_is_written_it_becomes_an_honest_answer(build: Build) -> None:
    client, house = await _too_late(build, asking(stream=True), HEAD)
    assert (client.status, client.error["code"], client.ended) == (504, "deadline_exceeded", True)
    assert (house.recorder.last.outcome, house.recorder.last.status) == (Outcome.DEADLINE, 504)


@pytest.mark.parametrize("at", [HEAD, BODY])
async def test_a_whole_answer_that_was_made_in_time_is_given(build: Build, at: int) -> None:
    client, house = await _too_late(build, asking(), at)
    assert (client.status, client.ended) == (200, True)
    assert client.json()["choices"][0]["message"]["content"] == "Hello"
    assert house.recorder.last.outcome is Outcome.OK


async def test_a_stream_gets_its_error_event(build: Build) -> None:
    client, _ = await _too_late(build, asking(stream=True), BODY + 1)
    assert client.events()[-1]["error"]["code"] == "deadline_exceeded"
    assert client.ended


async def test_a_stream_that_has_said_done_says_no_more(build: Build) -> None:
    head, events = 1, 4
    client, house = await _too_late(build, asking(stream=True), head + events)
    assert client.events()[-1] == "[DONE]"
    assert client.ended
    assert house.recorder.last.outcome is Outcome.OK
