"""Our OpenAPI document: valid, complete, and true to what checks the bodies."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from app.generation import Route
from app.wire.errors import ERRORS
from tests.gateway.conftest import Build, House
from tests.wire.bodies import ACCEPTED, BODIES

Document = dict[str, Any]


@pytest.fixture
async def document(house: House) -> Document:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found: Document = (await house.get("/openapi.json")).json()
    return found


def operations(document: Document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def everything(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from everything(inner)


def resolve(document: Document, ref: str) -> Any:
    assert ref.startswith("#/")
    found: Any = document
    for name in ref.removeprefix("#/").split("/"):
        found = found[name]
    return found


def checker(document: Document, schema: dict[str, Any]) -> Any:
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def test_it_is_openapi_3_1_with_a_title_and_a_version(document: Document) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"] == "gllm"
    assert document["info"]["version"]


def test_every_reference_resolves_and_nothing_lies_about_unused(document: Document) -> None:
    refs = {
        each["$ref"] for each in everything(document) if isinstance(each, dict) and isinstance(each.get("$ref"), str)
    }
    for ref in refs:
        assert resolve(document, ref)
    assert {ref.rsplit("/", 1)[1] for ref in refs} == set(document["components"]["schemas"])


def test_every_schema_is_a_valid_json_schema(document: Document) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid(schema), name
        checker(document, schema)


def test_every_operation_is_well_formed(document: Document) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert sorted(set(ids)) == sorted(ids)
    for path, method, operation in operations(document):
        assert operation["summary"]
        assert operation["responses"]
        for status, response in operation["responses"].items():
            assert status.isdecimal()
            assert response["description"]
        declared = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
        assert declared == {part[1:-1] for part in path.split("/") if part.startswith("{")}
        assert ("requestBody" in operation) == (method == "post" and not path.endswith(("/drain", "/admit")))


@pytest.mark.parametrize("route", Route)
def test_every_hot_endpoint_is_there_with_its_body_its_answers_and_its_errors(document: Document, route: Route) -> None:
    operation = document["paths"][route.value]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert resolve(document, schema["$ref"])["additionalProperties"] is False
    streams = route in (Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES)
    answers = {"application/json", "text/event-stream"} if streams else {"application/json"}
    assert set(operation["responses"]["200"]["content"]) == answers
    statuses = {str(row.status) for row in ERRORS.values()} - {"499"}
    assert set(operation["responses"]) == {"200", *statuses}
    for status in statuses:
        error = operation["responses"][status]["content"]["application/json"]["schema"]
        assert error == {"$ref": "#/components/schemas/ErrorBody"}


def test_what_can_be_read_is_there(document: Document) -> None:
    reads = {path for path, method, _ in operations(document) if method == "get"}
    models = {"/v1/models", "/v1/models/{model}"}
    journal = {"/admin/requests", "/admin/requests/{request_id}"}
    operators = {"/admin/usage", "/admin/models", "/admin/swap", "/admin/workers", "/admin/workers/{name}"}
    assert reads == {"/", "/health", "/livez", "/readyz", "/metrics"} | models | journal | operators | {
        "/admin/workers/{name}/logs"
    }
    assert "text/plain" in document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert resolve(
        document,
        document["paths"]["/health"]["get"]["responses"]["503"]["content"]["application/json"]["schema"]["$ref"],
    )


@pytest.mark.parametrize(("route", "name"), ACCEPTED)
def test_what_real_clients_send_fits_the_document(document: Document, route: Route, name: str) -> None:
    schema = document["paths"][route.value]["post"]["requestBody"]["content"]["application/json"]["schema"]
    checker(document, schema).validate(BODIES[route][name])


@pytest.mark.parametrize(
    ("path", "body", "fits"),
    [
        ("/load_model", {"model_path": "org/model", "force_reload": True}, True),
        ("/load_model", {"model": "org/model"}, False),
        ("/release_gpus", {}, True),
        (
            "/admin/models",
            {"model": "org/model", "names": ["m"], "args": ["--max-model-len", "8192"], "floor": 1},
            True,
        ),
        ("/admin/models", {"model": "a\nb"}, False),
        ("/admin/models", {"model": "a\n"}, False),
        ("/admin/models", {"model": "m", "count": 0}, False),
        ("/admin/adapters", {"name": "lora", "path": "/loras/lora"}, True),
        ("/admin/adapters", {"name": "lora"}, False),
    ],
)
async def test_orders_to_workers_are_there_as_they_are_checked(
    house: House, document: Document, path: str, body: dict[str, Any], fits: bool
) -> None:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert checker(document, schema).is_valid(body) is fits
    done = await house.post(body, path)
    assert (done.status == 400) is not fits, done.body


async def test_errors_fit_the_document(build: Build, document: Document) -> None:
    house = await build()
    schema = checker(document, document["components"]["schemas"]["ErrorBody"])
    for done in (await house.post(b"{"), await house.get("/nope"), await house.post(b"", method="GET")):
        schema.validate(done.json())


async def test_the_document_is_made_once(house: House) -> None:
    first, second = [await house.get("/openapi.json") for _ in range(2)]
    assert first.body == second.body
    assert json.loads(first.body)["paths"]
