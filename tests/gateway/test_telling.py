"""What the way through tells the metrics and the log, whatever clients send."""

import gc
import io
import random
import tracemalloc
from typing import Any

import pytest

from app.engines.scripted import Scripted
from app.telemetry.logs import LogWriter, RequestLog
from app.telemetry.metrics.labels import MOST_TENANTS
from app.telemetry.words import Words
from app.tenant import Tenant
from tests.gateway.conftest import Build, asking
from tests.support.asgi import JSON
from tests.telemetry.test_prometheus import ours

JUNK = 10_000
KEEPS_BYTES = 200_000
"""So much memory ten thousand requests may leave in what is counted: nothing but noise."""


async def test_ten_thousand_junk_tenants_models_paths_methods_and_keys_leave_a_bounded_page(build: Build) -> None:
    house = await build(settings={"JOURNAL_REQUESTS": 0})  # it fills up to its own bound
    metrics = house.gateway.observers.metrics
    assert metrics is not None
    dice = random.Random(7)

    class Crowd:
        """Lets everybody in, each as somebody new."""

        def admit(self, scope: Any, headers: Any) -> Tenant:
            return Tenant(f"t{dice.getrandbits(64):x}")

        admit_commander = admit

    house.gateway.edge._door = Crowd()

    async def some(count: int) -> None:
        for _ in range(count):
            junk = f"{dice.getrandbits(64):x}"
            match dice.randrange(7):
                case 0:
                    await house.post(asking(model=junk))
                case 1:
                    await house.get(f"/{junk}")
                case 2:
                    await house.get(f"/v1/models/{junk}")
                case 3:
                    await house.post(b"", path="/v1/chat/completions", method=junk.upper())
                case 4:
                    await house.post(asking(user=junk))
                case 5:
                    await house.post(asking(stream=True), headers=[*JSON, (b"idempotency-key", junk.encode())])
                case 6:
                    await house.get(f"/admin/workers/{junk}")
        house.recorder.records.clear()

    await some(MOST_TENANTS * 10)
    before, bytes_before = set(ours(metrics)), _bytes_of_metrics()
    await some(JUNK)
    after = ours(metrics)
    assert set(after) == before
    assert len(before) < 4_000
    tenants = {dict(labels)["tenant"] for name, labels in after if name == "gllm_tenant_requests_total"}
    assert len(tenants) == MOST_TENANTS + 1
    assert "other" in tenants
    assert {dict(labels)["model"] for name, labels in after if name == "gllm_request_outcomes_total"} == {
        "demo",
        "none",
    }
    assert _bytes_of_metrics() - bytes_before < KEEPS_BYTES
    tracemalloc.stop()


def _bytes_of_metrics() -> int:
    """What the files hold that count."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
        return 0
    gc.collect()
    taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/app/telemetry/*")])
    return sum(each.size for each in taken.statistics("filename"))


async def test_models_that_nobody_serves_are_one_label_where_no_model_is_known_yet(build: Build) -> None:
    """Then any name is taken for one that may come."""
    house = await build(only=Scripted(serves={}))
    for number in range(200):
        assert (await house.post(asking(model=f"junk-{number}"))).status == 503
    assert house.gateway.observers.metrics is not None
    found = ours(house.gateway.observers.metrics)
    assert found["gllm_request_outcomes_total", (("model", "other"), ("outcome", "upstream_failed"))] == 200
    models = {dict(labels)["model"] for name, labels in found if "model" in dict(labels)}
    assert models <= {"none", "other"}


async def test_what_machines_ask_again_and_again_is_in_no_line_unless_one_debugs(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    for level, logged in (("info", 1), ("debug", 5)):
        stream = io.StringIO()
        monkeypatch.setattr("app.gateway.observers.LogWriter", lambda to=stream: LogWriter(to))
        house = await build(settings={"LOG_LEVEL": level, "LOG_FORMAT": "json"})
        for path in ("/health", "/metrics", "/admin/workers", "/v1/models"):
            await house.get(path)
        await house.post({}, path="/add_worker")
        house.gateway.observers.log.close()
        assert stream.getvalue().count('"event":"request"') == logged


async def test_a_prompt_a_key_and_an_answer_are_never_logged(build: Build) -> None:
    stream = io.StringIO()
    writer = LogWriter(stream)
    house = await build()
    for as_json in (True, False):
        log = RequestLog(writer, words=None if as_json else Words(coloured=False))
        headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer canary-key")]
        for body in (
            asking(messages=[{"role": "user", "content": "canary-prompt"}]),
            asking(messages=[{"role": "user", "content": "canary-prompt"}], stream=True, user="canary-user"),
            asking(messages=[{"role": "canary-role", "content": "canary-prompt"}]),
            asking(messages="canary-prompt"),
            {"canary-field": "canary-prompt"},
        ):
            await house.post(body, headers=headers)
        for each in house.recorder.records:
            log.ended(each)
        for event in house.recorder.events:
            log.note(event)
    writer.close()
    assert stream.getvalue().count("chat/completions") == 5
    assert stream.getvalue().count("  chat  ") + stream.getvalue().count("  chat stream  ") == 10
    assert "canary" not in stream.getvalue()
    assert "Hello" not in stream.getvalue()
