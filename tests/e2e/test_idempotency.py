"""Keys over the real engine, across restarts and kills of the gateway that answered."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, comes_true

SHORT = {"prompt": "Docker is", "max_tokens": 8}
LONG = {"prompt": "On and on", "max_tokens": 1_500, "ignore_eos": True, "stream": True}
KEYED = {"Idempotency-Key": "order-17"}

Start = Callable[..., GatewayProcess]


@pytest.fixture
def start(engine: Engine, logs: Path) -> Iterator[Start]:
    """A gateway by its name: started again it finds what it left behind."""
    with ExitStack() as stack:

        def gateway(name: str, **settings: str) -> GatewayProcess:
            process = GatewayProcess(name, free_port(), logs, ENGINE_URLS=engine.url, **settings)
            return stack.enter_context(running(process))

        yield gateway


def ask(gateway: GatewayProcess, body: object, **headers: str) -> httpx.Response:
    return gateway.http.post("/v1/completions", json=body, headers={**KEYED, **headers})


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_the_same_after_a_restart_and_is_not_made_again(
    engine: Engine, start: Start, stream: bool
) -> None:
    name = f"restarted-{stream}"
    first = start(name)
    once = ask(first, SHORT | {"stream": stream}).raise_for_status()
    taken = engine.taken()
    first.end()
    second = start(name)
    again = ask(second, SHORT | {"stream": stream})
    assert (again.content, again.headers["idempotent-replayed"]) == (once.content, "true")
    assert "idempotent-replayed" not in once.headers
    assert engine.taken() == taken


def read_some(gateway: GatewayProcess, events: int) -> bytes:
    """Of a long stream; then the client is gone."""
    got = b""
    with gateway.http.stream("POST", "/v1/completions", json=LONG, headers=KEYED) as answer:
        for part in answer.iter_raw():
            got += part
            if got.count(b"\n\n") >= events:
                break
    whole, _, _ = got.rpartition(b"\n\n")
    return whole + b"\n\n"


def test_a_client_that_was_cut_off_goes_on_where_it_was(engine: Engine, start: Start) -> None:
    gateway = start("resumed")
    taken = engine.taken()
    head = read_some(gateway, 20)
    tail = ask(gateway, LONG, **{"Last-Event-ID": str(head.count(b"\n\n"))}).raise_for_status().content
    assert head + tail == ask(gateway, LONG).content
    assert (head + tail).endswith(b"data: [DONE]\n\n")
    assert engine.taken() == taken + 1


def test_a_client_that_does_not_come_back_costs_the_engine_no_more_than_the_grace_time(
    engine: Engine, start: Start
) -> None:
    gateway = start("abandoned", IDEMPOTENCY_GRACE="0.3")
    aborted = engine.aborted()
    read_some(gateway, 3)
    assert comes_true(lambda: engine.aborted() == aborted + 1, limit_s=5)
    assert comes_true(lambda: (engine.at_work(), gateway.in_flight()) == (0, 0), limit_s=2)


def test_a_killed_gateways_key_is_free_when_its_lease_has_run_out(engine: Engine, start: Start, redis_url: str) -> None:
    settings = {"REDIS_URL": redis_url, "REDIS_TIMEOUT": "2", "IDEMPOTENCY_LEASE": "1.5"}
    owner, other = (start(name, **settings) for name in ("owner", "other"))
    with owner.http.stream("POST", "/v1/completions", json=LONG, headers=KEYED) as answer:
        next(answer.iter_raw())
        owner.kill()
    assert comes_true(lambda: engine.at_work() == 0, limit_s=5), "it may count twice while it ends"
    taken = engine.taken()
    done = ask(other, LONG).raise_for_status()
    assert "idempotent-replayed" not in done.headers
    assert done.content.endswith(b"data: [DONE]\n\n")
    assert engine.taken() == taken + 1
