"""GET /admin/usage: who may see it, what it says, and what becomes of wrong questions."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineRefused
from app.gateway.admin import USAGE
from tests.gateway.conftest import Build, House, asking
from tests.support.asgi import Exchange
from tests.tenants.files import ADMIN_KEY, RESEARCH_KEY, TENANTS


async def ask(house: House, key: str = "", method: str = "GET", **query: str) -> Exchange:
    exchange = Exchange(USAGE, method=method, headers=[(b"x-api-key", key.encode())])
    exchange.scope["query_string"] = urlencode({name.rstrip("_"): value for name, value in query.items()}).encode()
    return await exchange.run(house.gateway.app)


def today() -> str:
    return datetime.now(UTC).date().isoformat()


async def test_what_was_just_used_is_in_the_answer(house: House) -> None:
    for stream in (False, True):
        await house.post(asking(stream=stream))
    answer = await ask(house)
    assert answer.status == 200
    page: dict[str, Any] = answer.json()
    used = [record.usage for record in house.recorder.records if record.usage is not None]
    counts = {
        "requests": 2,
        "prompt_tokens": sum(each.prompt_tokens for each in used),
        "completion_tokens": sum(each.completion_tokens for each in used),
        "cached_tokens": 0,
    }
    assert page["rows"] == [{**counts, "day": today(), "tenant": "anonymous", "model": "demo"}]
    assert page["totals"] == counts
    assert counts["completion_tokens"] > 0
    assert (page["to"], page["scope"], page["note"]) == (today(), "gateway", None)
    assert house.recorder.last.endpoint == USAGE


async def test_filters_leave_out_the_rest(house: House) -> None:
    await house.post(asking())
    for others in (ask(house, tenant="acme"), ask(house, model="large"), ask(house, to="2026-01-31")):
        page = (await others).json()
        assert page["rows"] == []
        assert page["totals"]["requests"] == 0
    page = (await ask(house, tenant="anonymous", model="demo", from_=today(), to=today())).json()
    assert page["totals"]["requests"] == 1


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"from_": "yesterday"}, "from"),
        ({"to": "2026-02-30"}, "to"),
        ({"to": ""}, "to"),
        ({"from_": "2026-02-02", "to": "2026-02-01"}, "from"),
        ({"from_": "2001-01-01"}, "from"),
        ({"tenants": "acme"}, "tenants"),
    ],
)
async def test_a_wrong_question_is_400_and_names_what_is_wrong(house: House, query: dict[str, str], param: str) -> None:
    refused = await ask(house, **query)
    assert (refused.status, refused.error["param"]) == (400, param)


async def test_with_tenants_it_is_for_admins_only(build: Build, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    house = await build(settings={"TENANTS_FILE": str(file)})
    refused = await ask(house, RESEARCH_KEY, tenant="research")
    assert (refused.status, refused.error["code"]) == (403, "not_allowed")
    assert (await ask(house)).status == 401
    assert (await ask(house, ADMIN_KEY)).status == 200


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_it_cannot_be_written(house: House, method: str) -> None:
    assert (await ask(house, method=method)).status == 405
    assert (await ask(house, method="HEAD")).status == 200


async def test_a_ledger_that_cannot_be_read_is_503_and_no_call_suffers(build: Build, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    house = await build()
    assert (await house.post(asking())).status == 200
    answer = await ask(house)
    assert (answer.status, answer.headers["x-gllm-reason"]) == (503, "ledger_unavailable")


async def test_what_no_engine_answered_is_not_counted(build: Build) -> None:
    house = await build(a=Scripted(refuse_with=EngineRefused()))
    assert (await house.post(asking())).status == 400
    assert (await ask(house)).json()["totals"]["requests"] == 0
