"""The engine in C: what it says is what an engine says, at the pace that was set, on every port."""

import json
import re
import socket
import time
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest

from bench.cost.cores import of_this_machine
from bench.cost.engine import HOUR_US, Engine, engine
from bench.cost.load import Load, held, write_requests
from bench.open_loop import chat

pytestmark = pytest.mark.alone
CORE = of_this_machine().engine


@pytest.fixture
def served() -> Iterator[Engine]:
    with engine(2, CORE) as running:
        yield running


def body(tokens: int, *, stream: bool = False, words: int = 3, **more: object) -> dict[str, object]:
    message = {"role": "user", "content": " ".join(["word"] * words)}
    return {"model": "bench", "messages": [message], "max_tokens": tokens, "stream": stream, **more}


def ask(served: Engine, asked: dict[str, object], replica: int = 0) -> httpx.Response:
    url = f"{served.urls(2)[replica]}/v1/chat/completions"
    return httpx.post(url, json=asked, trust_env=False, timeout=10).raise_for_status()


def events(answer: httpx.Response) -> list[dict[str, object]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_an_answer_has_as_many_tokens_as_were_asked_for(served: Engine) -> None:
    answer = ask(served, body(3)).json()
    assert answer["choices"][0]["message"]["content"] == " w0 w1 w2"
    assert answer["usage"]["completion_tokens"] == 3
    assert served.counts().requests == 1


@pytest.mark.parametrize("words", [3, 40_000])
def test_a_stream_has_a_role_its_tokens_in_order_and_an_end(words: int, served: Engine) -> None:
    got = events(ask(served, body(4, stream=True, words=words)))
    texts = [choice["delta"]["content"] for event in got for choice in event["choices"]]  # type: ignore[attr-defined]
    assert texts == ["", " w0", " w1", " w2", " w3"]


def test_usage_comes_where_it_was_asked_for(served: Engine) -> None:
    asked = body(2, stream=True, stream_options={"include_usage": True})
    *_, last = events(ask(served, asked))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2  # type: ignore[index]


def test_limits_are_found_by_either_name(served: Engine) -> None:
    asked = {**body(0), "max_completion_tokens": 5}
    del asked["max_tokens"]
    assert ask(served, asked).json()["usage"]["completion_tokens"] == 5


def test_each_port_is_a_replica(served: Engine) -> None:
    for url in served.urls(2):
        models = httpx.get(f"{url}/v1/models", trust_env=False).json()
        assert models["data"][0]["id"] == "bench"


def test_tokens_come_at_the_pace_that_was_set(served: Engine) -> None:
    served.pace(60_000)
    url = f"{served.urls(1)[0]}/v1/chat/completions"
    with httpx.stream("POST", url, json=body(4, stream=True), trust_env=False, timeout=10) as answer:
        times = [time.monotonic() for line in answer.iter_lines() if '" w' in line]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(gaps) == 3
    assert sum(gaps) == pytest.approx(0.18, abs=0.05)


def test_who_hangs_up_leaves_no_stream_behind(served: Engine) -> None:
    served.pace(HOUR_US)
    with httpx.stream("POST", f"{served.urls(1)[0]}/v1/chat/completions", json=body(9, stream=True), trust_env=False):
        assert served.counts().streams == 1
    until = time.monotonic() + 5
    while served.counts().streams and time.monotonic() < until:
        time.sleep(0.01)
    assert served.counts().streams == 0


def test_streams_of_a_former_pace_keep_nobody_waiting(served: Engine) -> None:
    served.pace(HOUR_US)
    with httpx.stream("POST", f"{served.urls(1)[0]}/v1/chat/completions", json=body(9, stream=True), trust_env=False):
        served.pace(1_000)
        assert len(events(ask(served, body(5, stream=True)))) == 6


@pytest.mark.parametrize("said", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n", b"\x16\x03\x01" * 99 + b"\r\n\r\n"])
def test_what_is_not_http_costs_the_connection_only(said: bytes, served: Engine) -> None:
    with socket.create_connection(("127.0.0.1", served.ports[0]), 5) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4_096):
            pass
    assert ask(served, body(1)).status_code == 200


def test_a_reader_that_is_slow_gets_all_in_the_end(served: Engine) -> None:
    pace, tokens = 20, 20_000  # as fast as they are read, none would be made that does not fit
    served.pace(pace)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", served.ports[0]))
        connection.sendall(chat(1, tokens, stream=True))
        time.sleep(2 * tokens * pace / 1e6)
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            got += connection.recv(1_000_000)
    sizes = [int(size, 16) for size in re.findall(rb"\r\n([0-9a-f]+)\r\ndata: ", got)]
    assert len(sizes) == tokens + 2
    assert len(got.partition(b"\r\n\r\n")[2]) == sum(size + len(f"{size:x}") + 4 for size in sizes) + 5


def test_hundreds_are_held_at_once(served: Engine, tmp_path_factory: pytest.TempPathFactory) -> None:
    served.pace(HOUR_US)
    path = write_requests(tmp_path_factory.mktemp("held") / "requests", [chat(1, 9, stream=True)])
    with held(Load(connections=400, tokens=9), served.ports[1], path, CORE) as begun:
        assert begun == served.counts().streams == 400
