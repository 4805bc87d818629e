"""A client over a small server that does as it is told."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gllm import LLMConfig, ServeConfig, VLLMClient, VLLMService
from gllm.service.errors import RequestFailed, Unreachable
from tests.service.conftest import environment

Reply = tuple[int, dict[str, str], Any]


class Told(ThreadingHTTPServer):
    """Answers with what `reply` makes of a body; remembers who asked, and how many did at once."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = ["demo"]
        self.reply: Callable[[dict[str, Any]], Reply] = echo
        self.bodies: list[dict[str, Any]] = []
        self.inside = self.most_inside = 0
        self.lock = threading.Lock()
        self.hung_up = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Told

    def do_GET(self) -> None:
        self._answer(200, {}, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        told = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with told.lock:
            told.bodies.append(body)
            told.inside += 1
            told.most_inside = max(told.most_inside, told.inside)
        reply = told.reply(body)
        with told.lock:
            told.inside -= 1
        self._answer(*reply)

    def _answer(self, status: int, headers: dict[str, str], value: Any) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, each in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, each)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.server.hung_up.set()

    def log_message(self, *args: object) -> None:
        pass


def echo(body: dict[str, Any]) -> Reply:
    said = body.get("prompt") or body["messages"][-1]["content"]
    choices = [
        {"index": place, "text": f"{said}-{place}", "message": {"content": f"{said}-{place}"}}
        for place in range(body.get("n", 1))
    ]
    return 200, {}, {"choices": choices}


@pytest.fixture
def told() -> Iterator[Told]:
    with Told() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def client(told: Told) -> Iterator[VLLMClient]:
    with VLLMClient("127.0.0.1", told.port, timeout=10) as client:
        yield client


def test_a_batch_comes_back_in_its_order_though_answered_in_another(told: Told, client: VLLMClient) -> None:
    answered: dict[str, threading.Event] = {text: threading.Event() for text in "abc"}
    answered["d"] = threading.Event()
    answered["d"].set()

    def backwards(body: dict[str, Any]) -> Reply:
        answered[chr(ord(body["prompt"]) + 1)].wait(5)
        answered[body["prompt"]].set()
        return echo(body)

    told.reply = backwards
    assert client.generate(["a", "b", "c"]) == [["a-0"], ["b-0"], ["c-0"]]


def test_each_conversation_gets_its_n_answers(client: VLLMClient) -> None:
    conversations = [[{"role": "user", "content": text}] for text in "ab"]
    assert client.chat(conversations, {"n": 2}) == [["a-0", "a-1"], ["b-0", "b-1"]]
    assert [[each.text for each in one] for one in client.chat(conversations, None, return_extra=True)] == [
        ["a-0"],
        ["b-0"],
    ]


def test_an_empty_batch_asks_nobody(told: Told, client: VLLMClient) -> None:
    assert client.chat([]) == client.generate([]) == []
    assert told.bodies == []


def test_so_many_sequences_as_were_allowed_are_asked_for_at_once(told: Told) -> None:
    gate = threading.Barrier(3, timeout=5)

    def together(body: dict[str, Any]) -> Reply:
        gate.wait()
        return echo(body)

    told.reply = together
    with VLLMClient("127.0.0.1", told.port, timeout=10, max_in_flight=6) as client:
        client.generate(["x"] * 12, {"n": 2})
    assert told.most_inside == 3


def test_the_adapter_answers_where_there_is_one(told: Told) -> None:
    told.models = ["base", "lora_adapter"]
    with VLLMClient("127.0.0.1", told.port) as client:
        client.generate(["a"])
    assert told.bodies[0]["model"] == "lora_adapter"


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_server_is_asked_again_when_it_says(told: Told, client: VLLMClient, status: int) -> None:
    refusals: Iterator[Reply] = iter([(status, {"retry-after": "0"}, {}), (status, {"retry-after": "0"}, {})])
    told.reply = lambda body: next(refusals, None) or echo(body)
    assert client.generate(["a"]) == [["a-0"]]
    assert len(told.bodies) == 3


def test_a_server_that_stays_full_fails_when_the_time_is_over(told: Told) -> None:
    told.reply = lambda body: (503, {"retry-after": "60"}, {})
    with (
        VLLMClient("127.0.0.1", told.port, timeout=0.2) as client,
        pytest.raises(RuntimeError, match=r"did not answer within 0\.2 s \(VLLMClient's timeout"),
    ):
        client.generate(["a"])


def test_a_refusal_is_told_in_the_servers_words(told: Told, client: VLLMClient) -> None:
    told.reply = lambda body: (400, {}, {"error": {"message": "Too long.", "code": "context_length_exceeded"}})
    with pytest.raises(RequestFailed, match=r"/v1/completions returned HTTP 400: Too long\.") as caught:
        client.generate(["a", "b"])
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_an_answer_that_is_none_is_an_error(told: Told, client: VLLMClient) -> None:
    told.reply = lambda body: (200, {}, b"<html>")
    with pytest.raises(RuntimeError, match="sent what is no answer"):
        client.generate(["a"])


def test_one_failure_ends_the_batch_and_hangs_up_on_the_rest(told: Told, client: VLLMClient) -> None:
    failed = threading.Event()

    def first_fails(body: dict[str, Any]) -> Reply:
        if body["prompt"] == "bad":
            return 400, {}, {"error": {"message": "No."}}
        failed.wait(5)
        return 200, {}, b" " * 50_000_000

    told.reply = first_fails
    with pytest.raises(RequestFailed, match=r"No\."):
        client.generate(["slow", "bad"])
    failed.set()
    assert told.hung_up.wait(5)


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1 cannot be reached"):
        VLLMClient("127.0.0.1", 1)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_the_callers_mistake(told: Told, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^timeout=.*: it is seconds, more than 0"):
        VLLMClient("127.0.0.1", told.server_port, seconds)
    with pytest.raises(ValueError, match=r"^client_timeout="):
        VLLMService(LLMConfig("m"), ServeConfig([0], client_timeout=seconds))


def test_a_server_that_goes_away_is_told(told: Told, client: VLLMClient) -> None:
    told.shutdown()
    told.server_close()
    with pytest.raises(Unreachable):
        client.generate(["a"])


def test_a_closed_client_asks_nobody(client: VLLMClient) -> None:
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate(["a"])


@pytest.mark.parametrize("batch", ["one text", [{"role": "user", "content": "a lone conversation"}]])
def test_what_is_no_batch_is_refused_before_it_is_taken_apart(client: VLLMClient, batch: Any) -> None:
    with pytest.raises(TypeError):
        (client.generate if isinstance(batch, str) else client.chat)(batch)


async def test_it_works_where_a_loop_is_running(client: VLLMClient) -> None:
    assert client.generate(["a"]) == [["a-0"]]


def test_ctrl_c_ends_a_batch(told: Told) -> None:
    asked, released = threading.Event(), threading.Event()

    def stuck(body: dict[str, Any]) -> Reply:
        asked.set()
        released.wait(20)
        return 200, {}, b" " * 50_000_000

    told.reply = stuck
    code = f"from gllm import VLLMClient\nVLLMClient('127.0.0.1', {told.port}, timeout=None).generate(['a', 'b'])"
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE) as process:
        assert asked.wait(20)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
    released.set()
    assert told.hung_up.wait(5)
