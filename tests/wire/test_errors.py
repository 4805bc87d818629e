"""One table from errors to HTTP: every error that can be raised stands in it once, in OpenAI's shape."""

import inspect
import json
from typing import Any

import msgspec
import pytest

from app import errors
from app.errors import EngineError, EngineRefused, GatewayError, Outcome, WrongMethod
from app.generation import Route
from app.wire.errors import ERRORS, ErrorBody, error_event, error_json, row_of
from app.wire.sse import data_of

KINDS = {errors.GatewayError, errors.ClientError, errors.ClusterError, errors.EngineError}
"""Names for whole branches; what is raised is a leaf, or has leaves that narrow it."""


def tree(root: type[GatewayError]) -> list[type[GatewayError]]:
    return [root, *(below for child in root.__subclasses__() for below in tree(child))]


RAISED = [each for each in tree(GatewayError) if each not in KINDS]


def made(kind: type[GatewayError]) -> GatewayError:
    return kind(allow="POST") if issubclass(kind, WrongMethod) else kind()


def test_every_error_has_its_row_and_every_row_its_error() -> None:
    assert set(RAISED) == set(ERRORS)
    assert {each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, GatewayError)} == set(
        tree(GatewayError)
    ), "all errors live in one file"


def test_no_two_errors_share_a_code() -> None:
    codes = [row.code for row in ERRORS.values()]
    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize("kind", RAISED)
def test_an_error_is_told_in_openais_shape(kind: type[GatewayError]) -> None:
    error = made(kind)
    body = json.loads(error_json(error))
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"].endswith((".", "'.", ").")), "a sentence"
    assert 10 < len(body["error"]["message"]) <= 256
    assert body["error"]["code"] == row_of(error).code
    assert body["error"]["type"] == row_of(error).type
    assert msgspec.convert(body, ErrorBody)


@pytest.mark.parametrize("kind", RAISED)
def test_inside_a_stream_an_error_is_one_event_with_the_same_body(kind: type[GatewayError]) -> None:
    error = made(kind)
    one = error_event(error)
    assert one.endswith(b"\n\n")
    assert one.count(b"\n") == 2
    assert data_of(one) == error_json(error)


STATUSES: list[tuple[str, int]] = [
    *[(name, 400) for name in ("InvalidRequest", "MalformedHttp", "ContextTooLong", "EngineRefused")],
    *[(name, 401) for name in ("MissingKey", "WrongKey")],
    ("NotAllowed", 403),
    *[(name, 404) for name in ("UnknownPath", "UnknownModel")],
    ("WrongMethod", 405),
    ("BodyTooSlow", 408),
    ("BodyTooLarge", 413),
    ("WrongMediaType", 415),
    ("HeadersTooLarge", 431),
    ("Unforeseen", 500),
    ("EngineLacks", 501),
    *[
        (name, 502)
        for name in ("EngineUnreachable", "EngineConnectTimeout", "EngineFailed", "EngineLost", "EngineNonsense")
    ],
    *[(name, 502) for name in ("EngineSilent", "EngineStalled", "EngineBroken", "EngineMisconfigured")],
    *[(name, 409) for name in ("KeyInFlight", "NotReplayable")],
    ("KeyReused", 422),
    *[(name, 429) for name in ("RateLimited", "LargerThanLimit", "TooManyFailedLogins")],
    *[(name, 503) for name in ("NoReplica", "Draining", "QueueFull", "EngineBusy", "WouldMissDeadline", "StoreDown")],
    ("EngineForgot", 503),
    ("DeadlinePassed", 504),
]


@pytest.mark.parametrize(("name", "status"), STATUSES)
def test_statuses_are_as_the_design_says(name: str, status: int) -> None:
    assert ERRORS[getattr(errors, name)].status == status


@pytest.mark.parametrize("kind", RAISED)
def test_a_status_and_an_outcome_tell_the_same_story(kind: type[GatewayError]) -> None:
    row = ERRORS[kind]
    stories: dict[Outcome, Any] = {
        Outcome.CLIENT_ERROR: row.status < 500 or kind in (errors.EngineLacks, errors.NotOffered),
        Outcome.CLIENT_GONE: row.status == 499,
        Outcome.QUEUE_FULL: row.status == 503,
        Outcome.DRAINING: row.status == 503,
        Outcome.DEADLINE: row.status == (503 if kind is errors.WouldMissDeadline else 504),
        Outcome.RATE_LIMITED: row.status == 429,
        Outcome.UPSTREAM_FAILED: row.status in (500, 502, 503),
    }
    assert stories[kind.outcome]


def test_what_the_client_did_wrong_is_never_tried_again() -> None:
    assert [each for each in RAISED if each.outcome is Outcome.CLIENT_ERROR and each.retryable] == []


def test_what_another_replica_may_mend_is_an_engines_doing() -> None:
    assert all(issubclass(each, EngineError) for each in RAISED if each.retryable)


def test_an_error_may_narrow_its_code_name_a_parameter_and_say_more() -> None:
    error = EngineRefused("Not here.", param="tools[0]", code="unsupported_parameter")
    assert json.loads(error_json(error))["error"] == {
        "message": "Not here.",
        "type": "invalid_request_error",
        "param": "tools[0]",
        "code": "unsupported_parameter",
    }


def test_what_an_engine_said_is_for_the_log_only() -> None:
    error = errors.EngineFailed(detail="CUDA error at 0x7f00, key sk-secret")
    assert b"CUDA" not in error_json(error) + error_event(error)
    assert "CUDA" not in str(error)


@pytest.mark.parametrize("route", [Route.RESPONSES, Route.MESSAGES])
def test_where_events_have_names_an_error_has_one_and_is_found_in_both_places(route: Route) -> None:
    name, data = error_event(errors.EngineBroken(), route).decode().strip().split("\n")
    said = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert said["type"] == "error"
    assert said["message"] == said["error"]["message"] == errors.EngineBroken.default
    assert said["code"] == said["error"]["code"] == "engine_interrupted"
    assert said.get("sequence_number") == (0 if route is Route.RESPONSES else None)
