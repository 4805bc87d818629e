"""Who may command workers: it makes a gateway connect to addresses, and engines stop."""

from pathlib import Path

import pytest

from app.errors import Outcome
from tests.gateway.control.conftest import Headquarters, Open
from tests.support.asgi import JSON, Exchange
from tests.support.clock import FakeClock
from tests.support.workers import ScriptedWorker
from tests.tenants.files import ADMIN_KEY, RESEARCH_KEY, TENANTS

SECRET = "s" * 20
ELSEWHERE = ("203.0.113.7", 40_000)
COMMANDS = [
    ("POST", "/add_worker"),
    ("POST", "/v1/add_worker"),
    ("POST", "/load_model"),
    ("POST", "/release_gpus"),
    ("POST", "/v1/release_gpus"),
    ("GET", "/admin/models"),
    ("POST", "/admin/models"),
    ("GET", "/admin/workers"),
    ("POST", "/admin/workers/w1/release"),
    ("GET", "/admin/workers/w1/logs"),
    ("DELETE", "/admin/swap"),
    ("POST", "/admin/adapters"),
    ("DELETE", "/admin/adapters/x"),
]
EACH = pytest.mark.parametrize(("method", "path"), COMMANDS)


async def ask(here: Headquarters, method: str, path: str, *headers: tuple[bytes, bytes], **how: object) -> Exchange:
    body = b"{}" if method == "POST" else b""
    exchange = Exchange(path, body, method=method, headers=[*JSON, *headers], **how)  # type: ignore[arg-type]
    return await exchange.run(here.house.gateway.app)


def bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", f"Bearer {key}".encode()


@EACH
async def test_an_open_gateway_takes_commands_from_its_own_machine_only(
    headquarters: Open, method: str, path: str
) -> None:
    here = await headquarters(settings={"ALLOW_ANONYMOUS": True})
    for stranger in (
        await ask(here, method, path, client=ELSEWHERE),
        await ask(here, method, path, (b"x-forwarded-for", b"203.0.113.7")),
        await ask(here, method, path, (b"origin", b"http://evil.example")),
        await ask(here, method, path, (b"host", b"evil.example:8000")),
        await ask(here, method, path, bearer(SECRET), client=ELSEWHERE),
        await ask(here, method, path, client=None),
    ):
        assert (stranger.status, stranger.error["code"]) == (403, "not_allowed")
    for host in (b"localhost:8000", b"127.0.0.1:8000", b"[::1]:8000", b"LOCALHOST"):
        assert (await ask(here, method, path, (b"host", host))).status != 403


@EACH
async def test_with_tenants_it_takes_an_admins_key(headquarters: Open, tmp_path: Path, method: str, path: str) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    here = await headquarters(settings={"TENANTS_FILE": str(file), "CLUSTER_SECRET": SECRET})
    assert (await ask(here, method, path)).error["code"] == "missing_api_key"
    assert (await ask(here, method, path, bearer(RESEARCH_KEY))).error["code"] == "not_allowed"
    assert (await ask(here, method, path, bearer("wrong"))).error["code"] == "invalid_api_key"
    for key in (ADMIN_KEY, SECRET):
        assert (await ask(here, method, path, bearer(key), client=ELSEWHERE)).status not in (401, 403)


@EACH
async def test_with_the_clusters_secret_it_is_allowed_from_everywhere(
    headquarters: Open, method: str, path: str
) -> None:
    here = await headquarters(settings={"ALLOW_ANONYMOUS": True, "CLUSTER_SECRET": SECRET})
    assert (await ask(here, method, path, bearer(SECRET), client=ELSEWHERE)).status != 403
    assert (await ask(here, method, path, bearer(SECRET + "x"), client=ELSEWHERE)).status == 403
    assert here.house.recorder.last.tenant == ""


async def test_the_secret_is_good_for_commands_alone(headquarters: Open, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    here = await headquarters(settings={"TENANTS_FILE": str(file), "CLUSTER_SECRET": SECRET})
    for path in ("/v1/models", "/admin/usage", "/metrics"):
        assert (await ask(here, "GET", path, bearer(SECRET), client=ELSEWHERE)).status == 401


async def test_who_tries_secrets_does_not_do_so_without_end(headquarters: Open) -> None:
    clock = FakeClock()
    here = await headquarters(settings={"ALLOW_ANONYMOUS": True, "CLUSTER_SECRET": SECRET}, clock=clock)
    statuses = [
        (await ask(here, "GET", "/admin/workers", bearer(f"try-{n}"), client=ELSEWHERE)).status for n in range(30)
    ]
    assert (statuses[0], statuses[-1]) == (403, 429)
    assert here.house.recorder.last.outcome is Outcome.RATE_LIMITED
    assert (await ask(here, "GET", "/admin/workers", bearer(SECRET), client=ELSEWHERE)).status == 200


async def test_an_unknown_path_under_a_command_is_no_way_around(headquarters: Open) -> None:
    here = await headquarters(ScriptedWorker("w1", "demo"), settings={"ALLOW_ANONYMOUS": True})
    for path in ("/admin/workers/", "/admin/workers/w1/../w1", "//add_worker", "/v1/v1/add_worker", "/ADD_WORKER"):
        assert (await ask(here, "POST", path, client=ELSEWHERE)).status in (403, 404)
