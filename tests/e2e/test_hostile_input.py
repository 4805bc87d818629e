"""What strangers send, to live processes: refused in our shape, nothing reaches the engine, nothing is left over."""

import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, comes_true
from tests.support.sockets import Raw, request

CHAT = "/v1/chat/completions"
SLOW_S = 2.0
GOOD = request("/v1/completions", {"prompt": "Docker is", "max_tokens": 1})
ASKED = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def strict(engine: Engine, logs: Path) -> Iterator[GatewayProcess]:
    """A gateway with little patience."""
    settings = {"ENGINE_URLS": engine.url, "BODY_TIMEOUT": str(SLOW_S), "WRITE_TIMEOUT": str(SLOW_S)}
    with running(GatewayProcess("strict", free_port(), logs, **settings)) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def _unharmed(strict: GatewayProcess, engine: Engine) -> Iterator[None]:
    """Around every attack: the engine has seen nothing of it, a good request is answered, nothing is in flight."""
    good(strict)
    strict.http.get("/admin/usage")  # the file of the ledger is open from the first request on
    files, taken = strict.open_files(), engine.taken()
    yield
    assert engine.taken() - taken == 0, "it reached the engine"
    good(strict)
    assert comes_true(lambda: (engine.at_work(), strict.in_flight()) == (0, 0), 2)
    assert comes_true(lambda: strict.open_files() <= files, 8), "descriptors leak"


def good(gateway: GatewayProcess) -> None:
    answer = gateway.http.post("/v1/completions", json={"prompt": "Docker is", "max_tokens": 1}, timeout=5)
    assert answer.status_code == 200


def refused(answer: tuple[int, dict[str, str], bytes], status: int, code: str) -> None:
    told, headers, body = answer
    error = json.loads(body)["error"]
    assert (told, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) <= 512
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert "access-control-allow-origin" not in headers


# --- HTTP -------------------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_two_hundred_heads_that_drip_in_keep_nobody_waiting(strict: GatewayProcess, engine: Engine) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(Raw(strict.port)) for _ in range(200)]
        began = time.monotonic()
        longest, answered = 0.0, 0
        while time.monotonic() - began < SLOW_S + 0.5:
            for client in slow:
                try:
                    client.say(b"P")
                except (BrokenPipeError, ConnectionResetError):
                    continue
            asked = time.monotonic()
            assert strict.http.get("/health", timeout=2).status_code == 200
            longest, answered = max(longest, time.monotonic() - asked), answered + 1
            time.sleep(0.1)
        assert longest < 0.5
        assert answered > 5
        assert all(client.closed() for client in slow)


def test_heads_and_bodies_that_stall_are_408(strict: GatewayProcess) -> None:
    with Raw(strict.port) as head, Raw(strict.port) as body, Raw(strict.port) as silent:
        head.say(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-a:")
        body.say(request(CHAT, b"x" * 10, "content-length: 1000000"))
        for client in (head, body):
            refused(client.answer(), 408, "request_timeout")
            assert client.closed()
        assert silent.closed()


def test_a_body_that_says_it_is_too_large_is_413_before_it_comes(strict: GatewayProcess) -> None:
    with Raw(strict.port) as client:
        refused(client.say(request(CHAT, b"{", f"content-length: {100 * 2**20}")).answer(), 413, "request_too_large")
        assert client.closed()


def test_a_body_without_end_is_413_while_it_comes_and_is_not_kept(strict: GatewayProcess) -> None:
    memory = strict.resident_mb()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    with Raw(strict.port) as client:
        client.say(head.encode())
        while not client.heard_from():
            client.say(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        refused(client.answer(), 413, "request_too_large")
        began = time.monotonic()
        while time.monotonic() - began < 10:  # it may finish its sentence, but not talk for ever
            try:
                client.say(b"10000\r\n" + b" " * 65_536 + b"\r\n")
            except ConnectionError:
                break
        assert time.monotonic() - began < 5
    assert strict.resident_mb() - memory < 60


def test_a_head_that_is_too_large_is_431(strict: GatewayProcess) -> None:
    for lines in ("x-long: " + "a" * 65_536, "\r\n".join(f"x-{number}: a" for number in range(500))):
        with Raw(strict.port) as client:
            client.say(f"GET /livez HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n".encode())
            refused(client.answer(), 431, "headers_too_large")


def test_a_thousand_resets_leave_no_descriptor(strict: GatewayProcess) -> None:
    """At every byte of a request that would be served if it were whole; `_unharmed` counts."""
    for number in range(1_000):
        client = Raw(strict.port)
        client.say(GOOD[: number % (len(GOOD) - 1)])
        client.reset()


def test_pipelined_requests_are_answered_in_their_order(strict: GatewayProcess) -> None:
    with Raw(strict.port) as client:
        client.say(b"".join(request(CHAT, b"{}", f"x-request-id: n-{number}") for number in range(50)))
        for number in range(50):
            status, headers, _ = client.answer()
            assert (status, headers["x-request-id"]) == (400, f"n-{number}")


def test_garbage_is_refused_or_cut_off(strict: GatewayProcess) -> None:
    chance = random.Random(26)
    lines = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc",
        b"POST /v1/completions HTTP/1.1\nhost: x\ncontent-length: -1\n\n",
        *(b"\xff" + chance.randbytes(chance.randrange(1, 4_000)) for _ in range(100)),
    ]
    for said in lines:
        with Raw(strict.port) as client:
            status, _, body = client.say(said).answer()
            assert status in (400, 405, 501)
            assert json.loads(body)["error"]["code"]
            assert client.closed()


def test_a_request_hidden_in_another_ones_body_is_never_served(strict: GatewayProcess) -> None:
    hidden = request("/v1/completions", {"prompt": "smuggled", "max_tokens": 1})
    for lines in ("transfer-encoding: chunked\r\ncontent-length: 0", "transfer-encoding: chunked, identity"):
        with Raw(strict.port) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{lines}\r\n\r\n"
            client.say(head.encode() + b"0\r\n\r\n" + hidden)
            status, _, _ = client.answer()
            assert status == 400
            assert client.closed()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_an_unknown_path_is_404_and_stays_here(strict: GatewayProcess, method: str) -> None:
    paths = ["/invocations", "/collective_rpc", "/pause", "/v1/../admin", "/V1/Models", "//v1/models", "/v1/score"]
    paths += ["/%2e%2e/etc/passwd", "/v1/chat/completions/", "/load", "/version", "/.env"]
    with Raw(strict.port) as client:
        for path in paths:
            said = client.say(request(path, {"prompt": "x"}, "origin: http://evil", method=method))
            if method == "HEAD":
                assert b"404" in said.until(b"\r\n\r\n")
            else:
                refused(said.answer(), 404, "not_found")


# --- bodies -----------------------------------------------------------------------------------------------------------


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "invalid_json"),
    "null": (b"null", "invalid_type"),
    "not an object": (b"[]", "invalid_type"),
    "cut short": (b'{"messages":[{"role":"us', "invalid_json"),
    "two documents": (json.dumps(ASKED).encode() * 2, "invalid_json"),
    "a byte order mark": (b"\xef\xbb\xbf" + json.dumps(ASKED).encode(), "invalid_json"),
    "no UTF-8": (b'{"messages":[{"role":"user","content":"\xff"}]}', "invalid_json"),
    "half a surrogate pair": (b'{"messages":[{"role":"user","content":"\\ud800"}]}', "invalid_json"),
    "NaN": (json.dumps({**ASKED, "temperature": float("nan")}).encode(), "invalid_json"),
    "depth": (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_type"),
    "depth in a field that is passed on": (
        b'{"messages":[{"role":"user","content":"x"}],"prediction":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nesting_too_deep",
    ),
    "a million unknown keys": (
        b'{"a":1,' + b",".join(b'"k%d":1' % n for n in range(500_000)) + b"}",
        "unsupported_parameter",
    ),
    "a long key": (b'{"' + b"k" * 5_000_000 + b'":1}', "unsupported_parameter"),
}


@pytest.mark.parametrize(("body", "code"), BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_request_is_400_and_soon(strict: GatewayProcess, body: bytes, code: str) -> None:
    began = time.monotonic()
    with Raw(strict.port) as client:
        refused(client.say(request(CHAT, body)).answer(), 400, code)
    assert time.monotonic() - began < 2


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"n": 10**9}, "n"),
    ({"n": True}, "n"),
    ({"n": 17}, "n"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"temperature": [1]}, "temperature"),
    ({"seed": 2**70}, "seed"),
    ({"logit_bias": {"abc": 1}}, "logit_bias"),
    ({"logit_bias": {str(number): 1 for number in range(100_000)}}, "logit_bias"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"model": "x" * 10_000}, "model"),
    ({"user": "u" * 2**20}, "user"),
    ({"tools": [{"type": "function", "function": {"name": "a\nb"}}]}, "tools[0].function.name"),
    *(
        ({name: "x"}, name)
        for name in (
            *("api_base", "base_url", "api_key", "chat_template", "prompt_embeds", "vllm_xargs", "priority"),
            *("kv_transfer_params", "cache_salt", "extra_body", "guided_decoding_backend", "request_id"),
        )
    ),
]


@pytest.mark.parametrize(
    ("fields", "param"), FIELDS, ids=[f"{param}-{number}" for number, (_, param) in enumerate(FIELDS)]
)
def test_a_bad_field_is_named(strict: GatewayProcess, fields: dict[str, Any], param: str) -> None:
    answer = strict.http.post(CHAT, json={**ASKED, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "http://169.254.169.254/", "x\nSet-Cookie: a=b", "🤖", "' OR 1=1 --", "{{7*7}}"]
)
def test_a_model_of_a_strange_name_is_404(strict: GatewayProcess, model: str) -> None:
    answer = strict.http.post(CHAT, json={**ASKED, "model": model})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "set-cookie" not in answer.headers


def test_nothing_is_fetched_on_behalf_of_a_request(strict: GatewayProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        port = canary.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}/", f"http://2130706433:{port}/", f"http://[::ffff:127.0.0.1]:{port}/"):
            part = {"type": "image_url", "image_url": {"url": url}}
            answer = strict.http.post(CHAT, json={"messages": [{"role": "user", "content": [part]}]})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "image_url_not_allowed")
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": f"http://127.0.0.1:{port}/s"}}}
        assert strict.http.post(CHAT, json={**ASKED, "response_format": schema}).status_code == 400
        canary.settimeout(0.3)
        with pytest.raises(TimeoutError):
            canary.accept()


# --- what is told -----------------------------------------------------------------------------------------------------


def test_ten_thousand_strange_models_and_paths_make_no_metric(strict: GatewayProcess) -> None:
    def strange(numbers: range) -> None:
        with Raw(strict.port) as client:
            for number in numbers:
                client.say(request(CHAT, {**ASKED, "model": f"model-{number}"}) + request(f"/path-{number}", b"{}"))
                if number % 20 == 19:
                    for _ in range(40):
                        assert client.answer()[0] == 404

    strange(range(20))
    series, memory = len(strict.samples()), strict.resident_mb()
    strange(range(20, 5_020))
    assert len(strict.samples()) == series
    assert strict.resident_mb() - memory < 20


def test_neither_prompts_nor_keys_are_told_to_anyone(strict: GatewayProcess, engine: Engine) -> None:
    canary = "canary-7f3a"
    headers = {"authorization": f"Bearer {canary}", "x-request-id": f"{canary}\n{canary}"[:11] + "!"}
    for asked in (
        {"prompt": canary, "temperature": 9},
        {"prompt": f'{canary}\n{{"event":"request"}}', "model": canary},
    ):
        answer = strict.http.post("/v1/completions", json=asked, headers=headers)
        assert answer.status_code in (400, 404)
        assert canary not in answer.text
    assert canary not in strict.http.get("/metrics").text
    time.sleep(0.3)  # the log is written in batches
    assert canary not in strict.log.read_text() + engine.log.read_text()
    for line in strict.log.read_text().splitlines():
        if line.startswith("{"):
            json.loads(line)
