import json
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from app.reliability.ledger import Amounts
from app.reliability.stores.sqlite_ledger import FILE, SqliteLedger
from gllm.cli import main

TODAY = datetime.now(UTC).date()
KEY = "gllm-secret"

PAGE = {
    "object": "usage",
    "from": "2026-01-01",
    "to": "2026-01-31",
    "scope": "cluster",
    "note": None,
    "rows": [
        {
            "day": "2026-01-02",
            "tenant": "acme",
            "model": "demo",
            "requests": 1_234_567,
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "cached_tokens": 0,
        }
    ],
    "totals": {"requests": 1_234_567, "prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 0},
}


class Gateway:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body = json.dumps(PAGE).encode()
        self.asked: list[tuple[str, dict[str, list[str]], str | None]] = []
        self.url = ""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    state = Gateway()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            state.asked.append((parts.path, parse_qs(parts.query), self.headers["authorization"]))
            self.send_response(state.status)
            self.send_header("content-length", str(len(state.body)))
            self.end_headers()
            self.wfile.write(state.body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLLM_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def state(tmp_path: Path) -> str:
    """What a gateway left behind."""
    ledger = SqliteLedger(tmp_path / FILE)
    ledger.add(
        {
            (TODAY, "acme", "demo"): Amounts(2, 2_000, 100, 50),
            (TODAY, "other", "org/large"): Amounts(1, 7, 3),
            (TODAY - timedelta(days=29), "acme", "demo"): Amounts(1, 1, 1),
            (date(2020, 1, 1), "acme", "demo"): Amounts(9, 9, 9),
        }
    )
    ledger.close()
    return str(tmp_path)


def out(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["usage", *args]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def refused(capsys: pytest.CaptureFixture[str], code: int, *args: str) -> str:
    assert main(["usage", *args]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("gllm: ")
    assert said.err.count("\n") == 1
    return said.err


# --- from the file ----------------------------------------------------------------------------------------------------


def test_a_table_for_people(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = TODAY - timedelta(days=29)
    assert out(capsys, "--state-dir", state).splitlines() == [
        f"Usage of this gateway from {earlier} to {TODAY} (UTC)",
        "",
        "day         tenant  model      requests  prompt  completion  cached",
        f"{earlier}  acme    demo              1       1           1       0",
        f"{TODAY}  acme    demo              2   2,000         100      50",
        f"{TODAY}  other   org/large         1       7           3       0",
        "total                                 4   2,008         104      50",
    ]


def test_json_and_csv_for_machines(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    page: dict[str, Any] = json.loads(out(capsys, "--state-dir", state, "--json", "--tenant", "other"))
    assert page["totals"] == {"requests": 1, "prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 0}
    lines = out(capsys, "--state-dir", state, "--csv", "--model", "demo", "--to", "2020-01-01").splitlines()
    assert lines == [
        "day,tenant,model,requests,prompt_tokens,completion_tokens,cached_tokens",
        "2020-01-01,acme,demo,9,9,9,0",
    ]


def test_no_usage_is_said_in_words(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "--state-dir", state, "--tenant", "nobody").endswith("\n\nNone.\n")


def test_a_name_cannot_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = SqliteLedger(tmp_path / FILE)
    ledger.add({(TODAY, "acme\x1b[2J", "de\nmo"): Amounts(1)})
    ledger.close()
    said = out(capsys, "--state-dir", str(tmp_path))
    assert "\x1b" not in said
    assert len(said.splitlines()) == 5


def test_a_folder_without_a_ledger_is_told_and_stays_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "There is no " in refused(capsys, 1, "--state-dir", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / FILE).write_bytes(b"text " * 1_000)
    assert "cannot be read" in refused(capsys, 1, "--state-dir", str(tmp_path))


@pytest.mark.parametrize(
    "days", [["--from", "today"], ["--to", "2026-02-30"], ["--from", "2026-02-02", "--to", "2026-02-01"]]
)
def test_days_that_cannot_be_are_refused(days: list[str], state: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, 2, "--state-dir", state, *days)


# --- from a gateway ---------------------------------------------------------------------------------------------------


def test_a_running_gateway_is_asked_what_was_asked(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    days = ("--from", "2026-01-01", "--to", "2026-01-31")
    said = out(capsys, "--url", f"{gateway.url}/v1/", *days, "--tenant", "a&b", "--model", "org/x", "--key", KEY)
    query = {"from": ["2026-01-01"], "to": ["2026-01-31"], "tenant": ["a&b"], "model": ["org/x"]}
    assert gateway.asked == [("/admin/usage", query, f"Bearer {KEY}")]
    assert said.startswith("Usage of all gateways from 2026-01-01 to 2026-01-31 (UTC)\n")
    assert "1,234,567" in said


def test_the_key_may_stand_in_the_environment(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out(capsys, "--url", gateway.url)
    monkeypatch.setenv("GLLM_API_KEY", KEY)
    out(capsys, "--url", gateway.url)
    assert [(query, key) for _, query, key in gateway.asked] == [({}, None), ({}, f"Bearer {KEY}")]


def test_what_is_not_the_whole_truth_says_so_beside_it(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.body = json.dumps({**PAGE, "note": "The shared store is down."}).encode()
    assert main(["usage", "--url", gateway.url, "--csv"]) == 0
    said = capsys.readouterr()
    assert said.err == "gllm: The shared store is down.\n"
    assert "store" not in said.out


@pytest.mark.parametrize(("status", "code"), [(400, 2), (401, 1), (403, 1), (503, 1)])
def test_its_refusal_is_told_in_its_words(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], status: int, code: int
) -> None:
    gateway.status, gateway.body = status, b'{"error":{"message":"The API key is not known."}}'
    said = refused(capsys, code, "--url", gateway.url, "--key", KEY)
    assert said == "gllm: The API key is not known.\n"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error":"no"}', b"\xff"])
@pytest.mark.parametrize("status", [200, 404])
def test_something_else_that_answers_is_told(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], body: bytes, status: int
) -> None:
    gateway.status, gateway.body = status, body
    assert "is not this version of gllm" in refused(capsys, 1, "--url", gateway.url)


def test_where_nobody_answers_the_other_way_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--state-dir" in refused(capsys, 1, "--url", "http://127.0.0.1:9")


def test_a_url_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--url must be" in refused(capsys, 2, "--url", "localhost:8000")


def test_a_reader_that_goes_away_is_no_error(state: str) -> None:
    import subprocess

    command = [
        sys.executable,
        "-c",
        "import sys; from gllm.cli import main; sys.exit(main())",
        "usage",
        "--state-dir",
        state,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert "Traceback" not in running.stderr.read()
