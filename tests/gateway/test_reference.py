"""The page at `/docs`: complete, and with nothing in it from elsewhere."""

import re
from html import unescape
from typing import Any

import pytest

from app.gateway.behind import DOCS
from app.gateway.reference import page
from tests.gateway.conftest import House


@pytest.fixture
async def document(house: House) -> dict[str, Any]:
    found: dict[str, Any] = (await house.get("/openapi.json")).json()
    return found


@pytest.fixture
async def written(house: House) -> str:
    return (await house.get("/docs")).body.decode()


def test_it_tells_of_every_operation_shape_and_error(document: dict[str, Any], written: str) -> None:
    for path, methods in document["paths"].items():
        assert f"<code>{path}</code>" in written
        for operation in methods.values():
            assert f"id='{operation['operationId']}'" in written
            assert operation["summary"] in unescape(written)
            for parameter in operation.get("parameters", ()):
                assert f"<code>{parameter['name']}</code>" in written
    for name, schema in document["components"]["schemas"].items():
        assert f"<h3 id='{name}'>" in written
        assert all(f"<code>{field}</code>" in written for field in schema.get("properties", {}))
    assert "<code>queue_full</code>" in written
    assert "Not healthy" not in written  # that is no code


def test_every_link_leads_somewhere_on_it(written: str) -> None:
    leads, places = set(re.findall(r"href='([^']*)'", written)), set(re.findall(r"id='?([\w.]+)", written))
    assert {lead.removeprefix("#") for lead in leads} - places == {"openapi.json"}


async def test_nothing_on_it_comes_from_elsewhere(house: House, written: str) -> None:
    assert not re.search(r"<script|<link|<img|<iframe|\bsrc=|@import|url\(|https?://", written)
    headers = (await house.get("/docs")).headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"].startswith("default-src 'none'; ")


async def test_the_pages_that_need_scripts_are_gone(house: House) -> None:
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert (await house.get(path)).status == 404


def test_what_a_document_says_is_text(document: dict[str, Any]) -> None:
    document["paths"]["/health"]["get"]["summary"] = "<script>alert(1)</script>"
    document["components"]["schemas"]["Health"]["properties"]["<b>"] = {"type": "string", "maxLength": 3}
    written = page(document)
    assert "<script" not in written
    assert "<b>" not in written
    assert "string, at most 3 long" in written


@pytest.mark.parametrize("path", sorted(DOCS))
async def test_it_has_its_own_name_in_logs_and_metrics(house: House, path: str) -> None:
    assert (await house.get(path)).status == 200
    assert house.recorder.last.endpoint == path
