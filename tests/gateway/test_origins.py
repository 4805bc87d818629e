"""A page that uses the gateway from another origin: what its browser asks first, and what it lets through."""

import json
from typing import Any

import pytest

from app.engines.scripted import Scripted
from tests.gateway.conftest import CHAT, Build, House, asking
from tests.support.asgi import JSON, Exchange
from tests.support.server import RawClient, serving
from tests.support.until import until

PAGE = "https://chat.example.com"
PREFLIGHT = [(b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"authorization")]


def by(origin: str, headers: list[tuple[bytes, bytes]] = JSON) -> list[tuple[bytes, bytes]]:
    return [*headers, (b"origin", origin.encode())]


@pytest.fixture
async def open_to_pages(build: Build) -> House:
    return await build(settings={"ALLOWED_ORIGINS": f"{PAGE}, http://localhost:3000"})


def shown_to(done: Exchange) -> str | None:
    return done.headers.get("access-control-allow-origin")


async def test_a_browser_hears_before_it_asks_that_the_page_may(open_to_pages: House) -> None:
    done = await open_to_pages.get(CHAT, method="OPTIONS", headers=by(PAGE, PREFLIGHT))
    assert (done.status, done.body, shown_to(done)) == (204, b"", PAGE)
    assert done.headers["access-control-allow-headers"] == "authorization"
    assert "POST" in done.headers["access-control-allow-methods"]
    assert done.headers["vary"] == "origin"
    assert open_to_pages.recorder.records == []


@pytest.mark.parametrize("body", [asking(), asking(stream=True), asking(n=0), asking(model="gpt-9"), b"{"])
async def test_the_page_may_read_whatever_the_answer_is(open_to_pages: House, body: Any) -> None:
    plain = [*JSON, (b"x-request-id", b"the-same")]
    done = await open_to_pages.post(body, headers=by(PAGE, plain))
    usual = await open_to_pages.post(body, headers=plain)
    assert (done.status, done.body, shown_to(done)) == (usual.status, usual.body, PAGE)
    assert done.headers["access-control-expose-headers"] == "*"
    assert shown_to(usual) is None


async def test_it_may_look_at_the_models(open_to_pages: House) -> None:
    for method in ("GET", "HEAD"):
        assert shown_to(await open_to_pages.get("/v1/models", method, headers=by(PAGE))) == PAGE


@pytest.mark.parametrize("origin", ["https://chat.example.com.evil.example", "http://chat.example.com", "null", ""])
async def test_no_other_page_may(open_to_pages: House, origin: str) -> None:
    assert shown_to(await open_to_pages.post(asking(), headers=by(origin))) is None
    asked_first = await open_to_pages.get(CHAT, method="OPTIONS", headers=by(origin, PREFLIGHT))
    assert (asked_first.status, shown_to(asked_first)) == (405, None)


@pytest.mark.parametrize("path", ["/load_model", "/admin/requests", "/metrics", "/chat/completions"])
async def test_nothing_but_the_api_is_for_pages(open_to_pages: House, path: str) -> None:
    done = await open_to_pages.get(path, method="OPTIONS", headers=by(PAGE, PREFLIGHT))
    assert (done.status >= 400, shown_to(done)) == (True, None)


async def test_any_page_may_where_the_operator_says_so(build: Build) -> None:
    house = await build(settings={"ALLOWED_ORIGINS": "*", "ALLOW_ANONYMOUS": True})
    assert shown_to(await house.post(asking(), headers=by("https://anything.example"))) == "https://anything.example"


async def test_without_a_word_of_the_operator_no_page_may(house: House) -> None:
    assert house.gateway.app is house.gateway.edge
    assert shown_to(await house.post(asking(), headers=by(PAGE))) is None


async def test_a_page_that_is_closed_is_a_hang_up(build: Build) -> None:
    house = await build(only=Scripted(pace_s=0.01, endless=True), settings={"ALLOWED_ORIGINS": PAGE})
    body = json.dumps(asking(stream=True)).encode()
    head = [f"POST {CHAT} HTTP/1.1", "host: x", "content-type: application/json", f"origin: {PAGE}"]
    async with serving(house.gateway) as port, RawClient.to(port) as page:
        await page.say("\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body)
        assert f"access-control-allow-origin: {PAGE}".encode() in await page.reader.readuntil(b"data: ")
        page.reset()
        await until(lambda: house.engine.aborted == 1)
