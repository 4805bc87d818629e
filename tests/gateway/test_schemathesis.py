"""A stranger reads our document and tries what it allows and what it forbids: no 5xx, and every answer as it says."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.engines.scripted import Scripted
from app.gateway.app import Gateway
from app.generation import Route
from app.settings import Settings

EXAMPLES = 25
NOT_PROMISED: list[Any] = [positive_data_acceptance, negative_data_rejection]
"""Some rules stand between fields, where a schema cannot say them; and 1.0 is an integer to a schema, not to us. That
what is forbidden is refused is looked at here: of 413, for a list that is too long by megabytes, that check does not
know."""


class Stranger:
    """Schemathesis, in front of a gateway over a scripted engine."""

    def __init__(self, state_dir: Path) -> None:
        self.engine = Scripted()
        flags = {"LOG_LEVEL": "error", "ALLOW_ANONYMOUS": True, "STATE_DIR": state_dir}
        self.gateway = Gateway(Settings.load(env={}, env_file=None, **flags), {"only": self.engine})
        asyncio.run(self.gateway.prober.round())
        self.schema: Any = schemathesis.openapi.from_asgi("/openapi.json", self.gateway.app)

    def tries(self, path: str, mode: GenerationMode, mend: Callable[[Any], None] = lambda body: None) -> "Counter[int]":
        """All that it makes of one operation, checked; how often which status came."""
        statuses: Counter[int] = Counter()
        method = "POST" if path in set(Route) else "GET"

        @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
        @given(case=self.schema[path][method].as_strategy(generation_mode=mode))
        def each(case: Case[Any]) -> None:
            mend(case.body)
            answer: Response = case.call()
            case.validate_response(answer, excluded_checks=NOT_PROMISED)
            assert answer.headers["x-request-id"]
            statuses[answer.status_code] += 1

        each()
        return statuses


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    stranger = Stranger(tmp_path_factory.mktemp("state"))
    yield stranger
    stranger.gateway.observers.log.close()


def mended(body: Any) -> None:
    """What a schema cannot say, so that more than a few bodies get through to an engine."""
    if not isinstance(body, dict):
        return
    body.pop("model", None)
    body.pop("stream_options", None)
    for name, value in body.items():
        if isinstance(value, float) and value.is_integer():
            body[name] = int(value)
    for message in body.get("messages") or []:
        message["content"] = "Hello"
        if message["role"] == "tool":
            message["tool_call_id"] = "call_1"


@pytest.mark.parametrize("path", Route)
def test_what_the_document_allows_is_answered_as_it_says(stranger: Stranger, path: Route) -> None:
    before = len(stranger.engine.calls)
    statuses = stranger.tries(path.value, GenerationMode.POSITIVE, mended)
    assert statuses[200] == len(stranger.engine.calls) - before, "whatever was refused has reached no engine"
    assert set(statuses) <= {200, 400}
    assert statuses[200]


@pytest.mark.parametrize("path", Route)
def test_what_the_document_forbids_is_refused_as_it_says(stranger: Stranger, path: Route) -> None:
    before = len(stranger.engine.calls)
    statuses = stranger.tries(path.value, GenerationMode.NEGATIVE)
    assert len(stranger.engine.calls) == before
    assert set(statuses) <= {400, 404, 413, 415}


@pytest.mark.parametrize("path", ["/", "/health", "/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/{model}"])
def test_what_can_be_read_is_answered_as_the_document_says(stranger: Stranger, path: str) -> None:
    assert set(stranger.tries(path, GenerationMode.POSITIVE)) <= {200, 404}


@pytest.mark.parametrize("mode", GenerationMode)
def test_the_usage_is_answered_as_the_document_says(stranger: Stranger, mode: GenerationMode) -> None:
    assert set(stranger.tries("/admin/usage", mode)) <= {200, 400}


@pytest.mark.parametrize("mode", GenerationMode)
def test_the_last_calls_are_answered_as_the_document_says(stranger: Stranger, mode: GenerationMode) -> None:
    assert set(stranger.tries("/admin/requests", mode)) <= {200, 400}


def test_calls_that_nobody_made_are_not_found_as_the_document_says(stranger: Stranger) -> None:
    assert set(stranger.tries("/admin/requests/{request_id}", GenerationMode.POSITIVE)) <= {404}


def test_after_all_that_nothing_is_left_running(stranger: Stranger) -> None:
    assert stranger.engine.running == 0
    assert stranger.gateway.admission.inside == 0
