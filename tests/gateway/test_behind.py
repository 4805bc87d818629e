"""What FastAPI serves behind the edge: the document of everything, and errors in the one shape."""

import logging
import warnings

import pytest

from app.errors import Outcome
from app.generation import Route
from tests.gateway.conftest import House


async def test_the_document_describes_every_endpoint_once_and_every_time(house: House) -> None:
    with warnings.catch_warnings(action="error"):
        first = await house.get("/openapi.json")
    assert first.status == 200
    assert (await house.get("/openapi.json")).body == first.body
    paths = first.json()["paths"]
    assert {route.value for route in Route} <= set(paths)
    assert {"/health", "/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/{model}"} <= set(paths)
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}
    names = [operation["operationId"] for operations in paths.values() for operation in operations.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", ["/", "/health", "/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/demo"])
async def test_what_can_be_read_can_be_asked_for_by_its_head(house: House, path: str) -> None:
    assert (await house.get(path, "HEAD")).status == 200
    put = await house.get(path, "PUT")
    assert (put.status, put.error["code"]) == (405, "method_not_allowed")
    assert set(put.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_a_defect_behind_the_edge_is_a_500_in_json(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(house.gateway.observers.metrics, "page", lambda accept: 1 / 0)
    with caplog.at_level(logging.ERROR):
        done = await house.get("/metrics")
    assert (done.status, done.error["code"]) == (500, "internal_error")
    assert "ZeroDivisionError" in caplog.text
    assert "Zero" not in done.body.decode()
    assert house.recorder.last.outcome is Outcome.UPSTREAM_FAILED
