"""There are no more connections of clients than the gateway can hold; whoever comes then is told so, and engines are
reached all the same."""

import asyncio
import json
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from app.gateway import connections
from app.gateway.connections import Connections, allow_open_files, that_files_allow
from tests.gateway.conftest import Build, House, asking
from tests.gateway.test_readings import number
from tests.support.server import RawClient, serving
from tests.support.sockets import request
from tests.support.until import until

ASKED = request("/v1/chat/completions", asking())


@asynccontextmanager
async def crowded(build: Build, most: int) -> AsyncIterator[tuple[House, int, AsyncExitStack]]:
    """A gateway all of whose connections are taken, by clients that leave with the last block."""
    house = await build(settings={"MAX_CONNECTIONS": most})
    async with serving(house.gateway) as port, AsyncExitStack() as clients:
        for _ in range(most):
            await clients.enter_async_context(RawClient.to(port))
        await until(lambda: house.gateway.connections.open == most)
        yield house, port, clients
    await until(lambda: house.gateway.connections.open == 0)


async def test_one_too_many_is_told_so_and_when_to_come_again(build: Build) -> None:
    async with crowded(build, 2) as (house, port, _):
        async with RawClient.to(port) as late:
            status, headers, body = await late.answer()
            assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
            assert json.loads(body)["error"]["code"] == "too_many_connections"
            assert json.loads(body)["error"]["type"] == "overloaded_error"
            assert await late.closed()
        assert house.gateway.connections.refused == 1


async def test_it_is_told_also_with_its_request_under_way(build: Build) -> None:
    """What it has sent is not answered with a reset, which would take the answer from it."""
    async with crowded(build, 1) as (house, port, _), RawClient.to(port) as late:
        await late.say(ASKED)
        assert (await late.answer())[0] == 503
        await late.say(ASKED)
        assert await late.closed()
        assert house.engine.calls == []


async def test_those_who_were_there_before_are_served_and_so_is_whoever_comes_once_one_has_left(build: Build) -> None:
    async with crowded(build, 1) as (house, port, clients):
        async with RawClient.to(port) as late:
            assert (await late.answer())[0] == 503
        await clients.aclose()
        await until(lambda: house.gateway.connections.open == 0)
        async with RawClient.to(port) as next_one:
            await next_one.say(ASKED)
            assert (await next_one.answer())[0] == 200


async def test_of_a_flood_so_many_are_told_and_the_others_cut_off(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "TOLD", 3)
    async with crowded(build, 1) as (house, port, _), AsyncExitStack() as flood:
        late = [await flood.enter_async_context(RawClient.to(port)) for _ in range(10)]
        said = await asyncio.gather(*(each.reader.read() for each in late), return_exceptions=True)
        told = [each for each in said if isinstance(each, bytes) and b" 503 " in each]
        assert 3 <= len(told) < 10
        assert house.gateway.connections.refused == 10
        assert all(not each or each in told for each in said if isinstance(each, bytes))


async def test_metrics_tell_of_them(build: Build) -> None:
    async with crowded(build, 2) as (house, port, _):
        async with RawClient.to(port) as late:
            await late.answer()
            assert number(house, "gllm_connections") == 3
        await until(lambda: house.gateway.connections.open == 2)
        assert number(house, "gllm_connections") == number(house, "gllm_connections_most") == 2
        assert number(house, "gllm_connections_refused_total") == 1


def test_a_shortage_is_one_line_of_the_log_and_its_end_another(caplog: pytest.LogCaptureFixture) -> None:
    crowd = Connections(10)
    for _ in range(2):
        for _ in range(15):
            crowd.come()
            if crowd.too_many:
                crowd.refuse()
        for _ in range(15):
            crowd.gone()
    said = [record.getMessage() for record in caplog.records]
    begun = "10 connections are open, and no more are taken (MAX_CONNECTIONS, ulimit -n)"
    over = "there is room for connections again: 9 of 10 are open"
    assert said == [begun, over] * 2


def test_open_files_decide_unless_somebody_has() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        allow_open_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == hard
        for files, clients in (1_024, 384), (20, 7), (2, 1):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            assert that_files_allow() == clients
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_where_open_files_have_no_bound_neither_have_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    unbound = resource.RLIM_INFINITY, resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda kind: unbound)
    assert that_files_allow() == sys.maxsize
