"""Keys at the edge: who comes in, as whom, to what; and a key is never told to anybody."""

import asyncio
import io
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from app.clock import Clock
from app.engines.scripted import Scripted
from app.errors import EngineBroken, EngineFailed, Outcome
from app.gateway.app import Gateway
from app.generation import Route
from app.settings import BadSetting, Settings
from app.telemetry.base import TenantsRead
from app.telemetry.logs import LogWriter, RequestLog
from app.telemetry.words import Words
from app.tenant import ANONYMOUS, Priority
from tests.gateway.conftest import Build, House, asking
from tests.support.asgi import JSON, Exchange
from tests.support.clock import FakeClock
from tests.tenants.files import ADMIN_KEY, BATCH_KEY, RESEARCH_KEY, TENANTS
from tests.wire.bodies import BODIES

Headers = list[tuple[bytes, bytes]]
ELSEWHERE = ("203.0.113.7", 40_000)
MODELS: dict[str, int | None] = {"demo": 2_048, "secret": 4_096}


def bearer(key: str, *more: tuple[bytes, bytes]) -> Headers:
    return [*JSON, (b"authorization", f"Bearer {key}".encode()), *more]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    return file


def becomes(file: Path, text: str, house: House | None = None) -> None:
    """And the gateway has seen it."""
    file.write_text(text)
    if house is not None:
        assert house.gateway.tenants is not None
        house.gateway.tenants.look()
        house.gateway.tenants.look()


Keyed = Callable[..., Awaitable[House]]


@pytest.fixture
def keyed(build: Build, file: Path) -> Keyed:
    async def make(clock: Clock = time.monotonic, **engines: Scripted) -> House:
        engines = engines or {"only": Scripted(serves=MODELS)}
        return await build(settings={"TENANTS_FILE": str(file)}, clock=clock, **engines)

    return make


# --- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", f"Bearer {RESEARCH_KEY}".encode()),
        (b"authorization", f"bearer   {RESEARCH_KEY} ".encode()),
        (b"authorization", f"BEARER {RESEARCH_KEY}".encode()),
        (b"x-api-key", RESEARCH_KEY.encode()),
    ],
)
async def test_a_key_lets_its_tenant_in(keyed: Keyed, header: tuple[bytes, bytes]) -> None:
    house = await keyed()
    done = await house.post(asking(), headers=[*JSON, header], client=ELSEWHERE, server=("203.0.113.1", 80))
    assert done.status == 200
    (call,) = house.engine.calls
    assert (call.tenant.name, call.priority) == ("research", Priority.NORMAL)
    assert house.recorder.last.tenant == "research"


async def test_a_proxys_own_login_does_not_hide_the_key(keyed: Keyed) -> None:
    house = await keyed()
    headers = [*JSON, (b"authorization", b"Basic dTpw"), (b"x-api-key", RESEARCH_KEY.encode())]
    assert (await house.post(asking(), headers=headers)).status == 200


@pytest.mark.parametrize("given", [b"", b"Bearer", b"Bearer ", b"Basic dTpw", RESEARCH_KEY.encode(), b"Bearer\t" * 2])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/tokenize", "/v1/models", "/models/demo", "/admin/usage"])
async def test_without_a_key_nothing_is_read_and_it_is_said_what_is_missing(
    keyed: Keyed, given: bytes, route: str
) -> None:
    house = await keyed()
    exchange = Exchange(route, b"x" * 100, headers=[*JSON, (b"authorization", given)], client=ELSEWHERE)
    done = await exchange.run(house.gateway.app)
    assert (done.status, done.error["code"], done.error["type"]) == (401, "missing_api_key", "authentication_error")
    assert done.headers["www-authenticate"] == "Bearer"
    assert done.parts_taken == 0
    assert house.engine.calls == []


@pytest.mark.parametrize(
    "key",
    [
        b"x",
        RESEARCH_KEY.encode()[:-1],
        RESEARCH_KEY.encode() + b"x",
        RESEARCH_KEY.upper().encode(),
        b"' OR '1'='1",
        b'{"$gt":""}',
        b"\xff\xfe",
        b"k" * 30_000,
    ],
)
async def test_a_wrong_key_is_refused_before_the_body_is_read(keyed: Keyed, key: bytes) -> None:
    house = await keyed()
    exchange = Exchange("/v1/chat/completions", b"x", headers=[*JSON, (b"authorization", b"Bearer " + key)])
    done = await exchange.run(house.gateway.app)
    assert (done.status, done.error["code"]) == (401, "invalid_api_key")
    assert done.parts_taken == 0
    assert done.headers["connection"] == "close"
    assert key not in done.body
    assert (house.recorder.last.outcome, house.recorder.last.tenant) == (Outcome.CLIENT_ERROR, "")


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key", b"x-priority"])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/models"])
async def test_two_of_what_must_be_one_are_refused(keyed: Keyed, name: bytes, route: str) -> None:
    house = await keyed()
    done = await house.post(asking(), path=route, headers=[*bearer(RESEARCH_KEY), (name, b"x"), (name, b"x")])
    assert (done.status, done.error["code"], done.error["param"]) == (400, "ambiguous_header", name.decode().title())


async def test_without_tenants_everybody_is_anonymous_and_no_key_matters(build: Build) -> None:
    house = await build()
    assert (await house.post(asking(), headers=bearer("anything"))).status == 200
    (call,) = house.engine.calls
    assert call.tenant is ANONYMOUS
    assert house.recorder.last.tenant == "anonymous"


# --- failed log-ins -----------------------------------------------------------------------------------------------


@pytest.fixture
async def impatient(keyed: Keyed) -> tuple[House, FakeClock]:
    clock = FakeClock()
    return await keyed(clock), clock


async def failed(house: House, address: str, times: int = 1) -> list[int]:
    return [
        (await house.post(asking(), headers=bearer(f"wrong-{n}"), client=(address, 1))).status for n in range(times)
    ]


async def test_who_tries_keys_is_slowed_down_and_told_for_how_long(impatient: tuple[House, FakeClock]) -> None:
    house, clock = impatient
    assert await failed(house, "203.0.113.7", 12) == [401] * 10 + [429] * 2
    done = await house.get("/v1/models", headers=bearer("wrong"), client=ELSEWHERE)
    assert (done.status, done.error["code"], done.headers["retry-after"]) == (429, "too_many_failed_logins", "6")
    assert house.recorder.last.outcome is Outcome.RATE_LIMITED
    clock.advance(6)
    assert await failed(house, "203.0.113.7", 2) == [401, 429]


async def test_a_right_key_is_taken_from_where_others_try_keys(impatient: tuple[House, FakeClock]) -> None:
    house, _ = impatient
    await failed(house, "203.0.113.7", 12)
    for _ in range(20):
        assert (await house.post(asking(), headers=bearer(RESEARCH_KEY), client=ELSEWHERE)).status == 200
    assert await failed(house, "203.0.113.8") == [401], "another address has its own tries"


async def test_right_keys_and_no_keys_are_no_failures(impatient: tuple[House, FakeClock]) -> None:
    house, _ = impatient
    for _ in range(20):
        assert (await house.post(asking(), client=ELSEWHERE)).status == 401
        assert (await house.post(asking(), headers=bearer(RESEARCH_KEY), client=ELSEWHERE)).status == 200
    assert await failed(house, "203.0.113.7", 10) == [401] * 10


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.7", "203.0.113.7", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::1", "::2", True),
        ("a-pipe", "another", False),
    ],
)
async def test_a_network_of_one_client_counts_as_one(
    impatient: tuple[House, FakeClock], one: str, other: str, same: bool
) -> None:
    house, _ = impatient
    await failed(house, one, 10)
    assert await failed(house, other) == [429 if same else 401]


async def test_a_socket_without_addresses_is_one_client(impatient: tuple[House, FakeClock]) -> None:
    house, _ = impatient
    done = [await house.post(asking(), headers=bearer("wrong"), client=None) for _ in range(11)]
    assert [each.status for each in done] == [401] * 10 + [429]


# --- what needs which key -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/", "/docs", "/openapi.json"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_some_paths_are_open(keyed: Keyed, path: str, method: str) -> None:
    house = await keyed()
    assert (await house.get(path, method, client=ELSEWHERE)).status == 200
    assert (await house.get(path, method, headers=bearer("wrong"), client=ELSEWHERE)).status == 200


@pytest.mark.parametrize("path", ["/nope", "/invocations", "/livez/", "/Health", "//health", "/metrics/", ""])
async def test_what_is_not_there_is_told_to_those_with_a_key_only(keyed: Keyed, path: str) -> None:
    house = await keyed()
    assert (await house.get(path)).error["code"] == "missing_api_key"
    assert (await house.get(path, headers=bearer(RESEARCH_KEY))).error["code"] == "not_found"


async def test_health_names_models_and_replicas_on_this_machine_only(keyed: Keyed) -> None:
    house = await keyed()
    near, far = await house.get("/health"), await house.get("/health", client=ELSEWHERE)
    assert (near.json()["models"], near.json()["replicas"]) == (["demo", "secret"], {"only": "ready"})
    assert (far.json()["models"], far.json()["model"], far.json()["replicas"]) == ([], None, {})
    assert far.json()["status"] == "healthy"
    behind_a_proxy = await house.get("/health", headers=[(b"x-forwarded-for", b"127.0.0.1")])
    assert behind_a_proxy.json()["models"] == []


@pytest.mark.parametrize(
    ("key", "client", "status"),
    [
        ("", ("127.0.0.1", 1), 200),
        ("", ("::1", 1), 200),
        ("", ELSEWHERE, 401),
        ("", None, 401),
        ("wrong", ("127.0.0.1", 1), 401),
        (RESEARCH_KEY, ("127.0.0.1", 1), 403),
        (RESEARCH_KEY, ELSEWHERE, 403),
        (ADMIN_KEY, ELSEWHERE, 200),
    ],
)
async def test_metrics_are_for_this_machine_and_for_admins(
    keyed: Keyed, key: str, client: tuple[str, int] | None, status: int
) -> None:
    house = await keyed()
    done = await house.get("/metrics", headers=bearer(key) if key else [], client=client)
    assert done.status == status
    if status == 403:
        assert done.error["code"] == "not_allowed"


async def test_a_proxy_on_this_machine_does_not_open_the_metrics(keyed: Keyed) -> None:
    house = await keyed()
    assert (await house.get("/metrics", headers=[(b"x-forwarded-for", b"203.0.113.7")])).status == 401


async def test_admin_paths_take_an_admins_key_from_everywhere(keyed: Keyed) -> None:
    house = await keyed()
    done = [await house.get("/admin/x", headers=headers) for headers in ([], bearer(BATCH_KEY), bearer(ADMIN_KEY))]
    assert [each.status for each in done] == [401, 403, 404]
    assert [each.tenant for each in house.recorder.records] == ["", "night", "operators"]


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_a_tenant_is_told_of_its_models_only(keyed: Keyed, path: str) -> None:
    house = await keyed()
    for key, models in ((RESEARCH_KEY, ["demo"]), (BATCH_KEY, ["demo", "secret"])):
        told = (await house.get(path, headers=bearer(key))).json()["data"]
        assert [each["id"] for each in told] == models


@pytest.mark.parametrize("route", Route)
async def test_a_model_that_is_not_granted_is_unknown_on_every_route(keyed: Keyed, route: Route) -> None:
    house = await keyed()
    body = next(iter(BODIES[route].values()))
    secret, nope = [
        await house.post({**body, "model": model}, path=route.value, headers=bearer(RESEARCH_KEY))
        for model in ("secret", "nope!!")
    ]
    assert (secret.status, secret.error["code"]) == (404, "model_not_found")
    assert secret.body == nope.body
    assert secret.headers.keys() == nope.headers.keys()
    assert house.engine.calls == []


@pytest.mark.parametrize("prefix", ["/v1/models/", "/models/"])
async def test_a_model_that_is_not_granted_cannot_be_looked_at(keyed: Keyed, prefix: str) -> None:
    house = await keyed()
    secret, nope = [await house.get(prefix + model, headers=bearer(RESEARCH_KEY)) for model in ("secret", "nope!!")]
    assert (secret.status, secret.body) == (404, nope.body)
    assert (await house.get(f"{prefix}secret", headers=bearer(BATCH_KEY))).status == 200
    assert (await house.get(f"{prefix}demo", headers=bearer(RESEARCH_KEY))).status == 200


async def test_the_only_model_that_is_granted_need_not_be_named(keyed: Keyed) -> None:
    house = await keyed()
    body = asking()
    del body["model"]
    assert (await house.post(body, headers=bearer(RESEARCH_KEY))).status == 200
    assert house.engine.calls[0].model == "demo"
    assert (await house.post(body, headers=bearer(BATCH_KEY))).status == 404, "it may use two"


async def test_who_may_use_nothing_that_is_served_is_not_told_what_is(keyed: Keyed) -> None:
    house = await keyed(only=Scripted(serves={"secret": 1}))
    body = asking()
    del body["model"]
    done = await house.post(body, headers=bearer(RESEARCH_KEY))
    assert (done.status, done.error["code"]) == (404, "model_not_found")


async def test_before_an_engine_answers_a_model_that_is_not_granted_is_unknown_all_the_same(keyed: Keyed) -> None:
    house = await keyed(only=Scripted(serves={}))
    done = [await house.post(asking(model=name), headers=bearer(RESEARCH_KEY)) for name in ("demo", "secret", "nope")]
    assert [each.status for each in done] == [503, 404, 404]


# --- priorities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "asked", "given"),
    [
        (ADMIN_KEY, "interactive", "interactive"),
        (ADMIN_KEY, "batch", "batch"),
        (RESEARCH_KEY, "interactive", "normal"),
        (RESEARCH_KEY, "normal", "normal"),
        (RESEARCH_KEY, "batch", "batch"),
        (BATCH_KEY, "interactive", "batch"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_priority_is_what_was_asked_but_not_above_the_tenants_and_the_answer_says_so(
    keyed: Keyed, key: str, asked: str, given: str, stream: bool
) -> None:
    house = await keyed()
    headers = bearer(key, (b"x-priority", asked.encode()))
    done = await house.post(asking(stream=stream), headers=headers)
    assert (done.status, done.headers["x-gllm-priority"]) == (200, given)
    assert house.engine.calls[0].priority is Priority[given.upper()]


async def test_who_asks_for_no_priority_has_the_tenants_and_hears_nothing_of_it(keyed: Keyed) -> None:
    house = await keyed()
    done = await house.post(asking(), headers=bearer(BATCH_KEY))
    assert "x-gllm-priority" not in done.headers
    assert house.engine.calls[0].priority is Priority.BATCH


async def test_an_error_says_the_priority_too(keyed: Keyed) -> None:
    house = await keyed(only=Scripted(refuse_with=EngineFailed()))
    done = await house.post(asking(model="demo"), headers=bearer(BATCH_KEY, (b"x-priority", b"normal")))
    assert (done.status, done.headers["x-gllm-priority"]) == (502, "batch")


@pytest.mark.parametrize("asked", [b"", b"high", b"Interactive", b"0", b" normal", b"normal,batch", b"\xff"])
async def test_what_is_no_priority_is_refused(build: Build, asked: bytes) -> None:
    house = await build()
    done = await house.post(asking(), headers=[*JSON, (b"x-priority", asked)])
    assert (done.status, done.error["param"], done.error["code"]) == (400, "X-Priority", "invalid_header")
    assert house.engine.calls == []


# --- the file changes ---------------------------------------------------------------------------------------------


async def test_a_revoked_key_is_refused_from_the_moment_the_file_is_read(keyed: Keyed, file: Path) -> None:
    house = await keyed()
    without = TENANTS.partition("[[tenant.key]]")[0]
    becomes(file, without)
    assert (await house.post(asking(), headers=bearer(RESEARCH_KEY))).status == 200
    becomes(file, without, house)
    assert (await house.post(asking(), headers=bearer(RESEARCH_KEY))).status == 401
    assert house.recorder.events[-1] == TenantsRead(1, 0, refused=False)


async def test_a_bad_file_keeps_the_old_keys_and_shows_in_the_metrics(keyed: Keyed, file: Path) -> None:
    house = await keyed()
    metrics = house.gateway.observers.metrics
    assert metrics is not None
    for text, shown in ((RESEARCH_KEY, b"1.0"), (TENANTS, b"0.0")):
        becomes(file, text, house)
        assert (await house.post(asking(), headers=bearer(RESEARCH_KEY))).status == 200
        assert b"gllm_tenants_file_refused " + shown in metrics.page()[1]
    assert house.recorder.events[-2:] == [TenantsRead(3, 3, refused=True), TenantsRead(3, 3, refused=False)]


@pytest.mark.parametrize("text", ["", "[[tenant]]\nwieght = 1\n", None])
def test_a_bad_or_missing_file_stops_the_start_with_its_sentence(file: Path, text: str | None) -> None:
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(BadSetting, match=f"^TENANTS_FILE: {file}[:,]"):
        Gateway(Settings.load({}, None, TENANTS_FILE=str(file)), {})


# --- a key is told to nobody --------------------------------------------------------------------------------------


async def test_no_key_reaches_a_log_a_metric_an_error_or_an_engine(
    keyed: Keyed, file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    stream = io.StringIO()
    writer = LogWriter(stream)
    house = await keyed(
        only=Scripted(serves={"demo": 1, "secret": 1}),
        breaks=Scripted(serves={"breaks": 1}, break_at=2, break_with=EngineBroken),
        fails=Scripted(serves={"fails": 1}, refuse_with=EngineFailed()),
    )
    answers: list[Exchange] = []
    for key in (RESEARCH_KEY, BATCH_KEY, ADMIN_KEY, "gllm-wrong-canary"):
        for headers in (bearer(key), [*JSON, (b"x-api-key", key.encode())], bearer(key, (b"x-priority", key.encode()))):
            for model in ("demo", "secret", "breaks", "fails", "nope"):
                answers += [await house.post(asking(model=model, stream=s), headers=headers) for s in (False, True)]
            answers.append(await house.post(b"{", headers=headers))
            answers.append(await house.post(asking(), headers=[*headers, *headers]))
            answers.append(await house.post(b"", method="GET", headers=headers))
            for each in ("/v1/models", "/v1/models/demo", "/metrics", "/health", "/nope", "/admin/x", "/openapi.json"):
                answers.append(await house.get(each, headers=headers))
            answers += [await house.post(asking(), headers=bearer(f"{key}{n}")) for n in range(12)]
    with monkeypatch.context() as broken:
        broken.setattr(house.gateway.observers.metrics, "page", lambda accept: 1 / 0)
        answers.append(await house.get("/metrics", headers=bearer(ADMIN_KEY)))
        broken.setattr(type(house.gateway.fleet), "resolve", lambda *_: 1 / 0)
        answers.append(await house.post(asking(), headers=bearer(ADMIN_KEY)))
    metrics = house.gateway.observers.metrics
    assert metrics is not None
    for text in (f"{TENANTS}sha256 = '{ADMIN_KEY}'\n", f"{TENANTS}'{ADMIN_KEY}' = 1\n", ADMIN_KEY, TENANTS):
        becomes(file, text, house)
    for as_json in (True, False):
        log = RequestLog(writer, words=None if as_json else Words(coloured=False))
        for record in house.recorder.records:
            log.ended(record)
        for event in house.recorder.events:
            log.note(event)
    writer.close()

    assert {200, 400, 401, 403, 404, 405, 429, 500, 502} <= {each.status for each in answers}
    said = [
        stream.getvalue(),
        caplog.text,
        "".join(str(each.__dict__) for each in caplog.records),
        metrics.page()[1].decode(),
        *(each.body.decode() + json.dumps(each.headers) for each in answers),
        *(str(call).replace("'", "") for engine in house.engines.values() for call in engine.calls),
    ]
    assert '"tenant":"research"' in said[0]
    assert "  research  " in said[0]
    assert "ZeroDivisionError" in said[1]
    assert "tenants.toml, line" in said[1]
    assert [each for each in said if "canary" in each] == []
