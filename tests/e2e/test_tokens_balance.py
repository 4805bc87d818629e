"""Over the real engine: tenants are charged what their answers said, and that is what the engine counted."""

import json
import random
import re
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, comes_true
from tests.support.sockets import Raw, request
from tests.support.tenancy import ADMIN, signed, write_tenants

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPTS = ["Docker is", "Why do streams need backpressure?", "What is continuous batching? Explain it to a friend."]
SEED = 2_026
AT_ONCE = 16
PLACES = 50
GENEROUS = {"tokens_per_minute": 1_000_000, "concurrent": PLACES}
TENANTS = {"steady": GENEROUS, "silent": {}, "narrow": {"requests_per_minute": 8}, "twins": GENEROUS, "hasty": GENEROUS}

IN_HAND = 16
"""Tokens that the gateway may have read and not passed on when it hears that the client has gone: one block, which is
a token of each choice, or a few where the gateway is late."""
ON_THE_WAY = 64
"""Tokens that may have been passed on and not been read by a client that hangs up with a full ear: what is made in the
milliseconds between its last look and its leaving."""


@dataclass(frozen=True)
class Tokens:
    prompt: int = 0
    completion: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)

    @classmethod
    def of(cls, usage: dict[str, Any]) -> "Tokens":
        return cls(usage["prompt_tokens"], usage["completion_tokens"])


NOTHING = Tokens()


@dataclass(frozen=True)
class Asked:
    tenant: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def bytes(self) -> bytes:
        return request(self.path, self.body, *(f"{name}: {value}" for name, value in self.headers.items()))


@dataclass(frozen=True)
class Told:
    """What an answer said that it used."""

    status: int
    tokens: Tokens = NOTHING
    choices: int = 1


class How(Enum):
    """A client leaves."""

    CLOSED = "closed"
    RESET = "reset"
    HALF_CLOSED = "half-closed"
    """It says that it goes, and listens until it hears no more: so it knows all that the gateway sent."""


@dataclass(frozen=True)
class Left:
    id: str
    how: How
    got: Tokens


@pytest.fixture(scope="module")
def gateway(engine: Engine, logs: Path) -> Iterator[GatewayProcess]:
    file = logs / "balance.toml"
    write_tenants(file, TENANTS)
    settings = {"TENANTS_FILE": str(file), "EXACT_USAGE": "true", "LEDGER_FLUSH_INTERVAL": "0.2"}
    with running(GatewayProcess("balance", free_port(), logs, ENGINE_URLS=engine.url, **settings)) as process:
        yield process


def test_what_was_answered_is_charged_as_the_answer_said_and_as_the_engine_counted(
    gateway: GatewayProcess, engine: Engine
) -> None:
    chance = random.Random(SEED)
    plan = [some(chance, "steady", stream=number % 2 == 0, n=1 + number % 3 % 2) for number in range(50)]
    plan += [some(chance, "silent", stream=True, stream_options=None) for _ in range(20)]
    plan += [some(chance, "narrow", stream=number % 2 == 0) for number in range(20)]
    for number in range(6):
        plan += [some(chance, "twins", stream=number % 2 == 0, key=f"twins-{number}")] * 4
    chance.shuffle(plan)
    before = counted_by(engine) - charged(gateway)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(zip(plan, threads.map(lambda asked: answer(gateway, asked), plan), strict=True))

    def told(tenant: str) -> list[Told]:
        return [each for asked, each in answers if asked.tenant == tenant]

    assert {each.status for each in told("narrow")} == {200, 429}
    assert {each.status for tenant in ("steady", "silent", "twins") for each in told(tenant)} == {200}
    assert_nothing_is_left(gateway, engine)
    assert charged(gateway, "steady") == total(told("steady"))
    assert charged(gateway, "narrow") == total(told("narrow"))
    once = {asked.headers["Idempotency-Key"]: each for asked, each in answers if asked.tenant == "twins"}
    assert charged(gateway, "twins") == total(once.values())
    for_second_choices = sum((each.choices - 1) * each.tokens.prompt for each in told("steady"))
    assert counted_by(engine) - charged(gateway) == before + Tokens(for_second_choices, 0)


def test_a_stream_that_its_client_left_is_charged_for_what_was_delivered(
    gateway: GatewayProcess, engine: Engine
) -> None:
    chance = random.Random(SEED)
    long: dict[str, Any] = {"stream": True, "max_tokens": 500, "ignore_eos": True, "return_token_ids": True}
    plan = [
        (some(chance, "hasty", n=chance.choice([1, 2]), **long), chance.choice(list(How)), chance.randint(1, 60))
        for _ in range(40)
    ]
    before = counted_by(engine) - charged(gateway)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        leaving = [threads.submit(leave, gateway, *each) for each in plan]
        staying = [threads.submit(answer, gateway, some(chance, "steady", stream=True)) for _ in range(20)]
    assert {each.result().status for each in staying} == {200}
    assert_nothing_is_left(gateway, engine)
    lines = lines_of(gateway, "hasty", len(plan))
    for each in (each.result() for each in leaving):
        line = lines[each.id]
        assert (line["outcome"], line["prompt_tokens"]) == ("client_gone", each.got.prompt)
        more = line["completion_tokens"] - each.got.completion
        assert 0 <= more <= (IN_HAND if each.how is How.HALF_CLOSED else ON_THE_WAY), each
    assert charged(gateway, "hasty") == sum((Tokens.of(line) for line in lines.values()), NOTHING)
    more_made = (counted_by(engine) - charged(gateway) - before).completion
    assert 0 <= more_made <= len(plan) * ON_THE_WAY


def test_whole_answers_that_nobody_waited_for_leave_nothing_behind(gateway: GatewayProcess, engine: Engine) -> None:
    chance = random.Random(SEED)
    for _ in range(10):
        asked = some(chance, "hasty", stream=False, max_tokens=500, ignore_eos=True)
        with Raw(gateway.port) as client:
            client.say(asked.bytes)
            time.sleep(chance.random() / 20)
    assert_nothing_is_left(gateway, engine)


# --- asking -----------------------------------------------------------------------------------------------------------


def some(chance: random.Random, tenant: str, *, key: str | None = None, **fields: Any) -> Asked:
    prompt = chance.choice(PROMPTS)
    chat = chance.random() < 0.5
    body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    body |= {"max_tokens": chance.randint(1, 60), "ignore_eos": chance.random() < 0.5}
    if fields.get("stream"):
        body["stream_options"] = {"include_usage": True}
    keyed = {} if key is None else {"Idempotency-Key": key}
    return Asked(tenant, CHAT if chat else COMPLETIONS, body | fields, signed(tenant, **keyed))


def answer(gateway: GatewayProcess, asked: Asked) -> Told:
    got = gateway.http.post(asked.path, json=asked.body, headers=asked.headers)
    if got.status_code != 200:
        return Told(got.status_code, Tokens())
    usage = usage_told(got, stream=asked.body["stream"])
    return Told(200, Tokens() if usage is None else Tokens.of(usage), asked.body.get("n", 1))


def usage_told(got: httpx.Response, *, stream: bool) -> dict[str, Any] | None:
    if not stream:
        whole: dict[str, Any] = got.json()["usage"]
        return whole
    assert got.content.endswith(b"data: [DONE]\n\n")
    *_, last = chunks_of(got.content)
    return last.get("usage")


def chunks_of(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]


def leave(gateway: GatewayProcess, asked: Asked, how: How, after: int) -> Left:
    """In the middle of a stream, when so many events have come."""
    with Raw(gateway.port, limit_s=30) as client:
        head = client.say(asked.bytes).until(b"\r\n\r\n").decode()
        got = b"".join(client.until(b"\n\n") for _ in range(after))
        if how is How.RESET:
            client.reset()
        elif how is How.HALF_CLOSED:
            client.socket.shutdown(socket.SHUT_WR)
            got += client.until(b"0\r\n\r\n")
    id_ = re.search(r"x-request-id: (\S+)", head)
    assert id_ is not None
    chunks = chunks_of(got)
    made = sum(len(choice.get("token_ids") or ()) for chunk in chunks for choice in chunk["choices"])
    return Left(id_[1], how, Tokens(len(prompt_of(chunks[0])), made))


def prompt_of(chunk: dict[str, Any]) -> list[int]:
    """Chats tell it beside their choices, completions in them."""
    prompt: list[int] = chunk.get("prompt_token_ids") or chunk["choices"][0]["prompt_token_ids"]
    return prompt


# --- counting ---------------------------------------------------------------------------------------------------------


def counted_by(engine: Engine) -> Tokens:
    return Tokens(int(engine.sum_of("vllm:prompt_tokens_total")), int(engine.sum_of("vllm:generation_tokens_total")))


def charged(gateway: GatewayProcess, *tenant: str) -> Tokens:
    """To one, or to all."""
    only = {"tenant": tenant[0]} if tenant else {}
    page = gateway.http.get("/admin/usage", params=only, headers=signed(ADMIN)).raise_for_status().json()
    return Tokens.of(page["totals"])


def total(told: Iterable[Told]) -> Tokens:
    return sum((each.tokens for each in told), NOTHING)


def lines_of(gateway: GatewayProcess, tenant: str, count: int) -> dict[str, dict[str, Any]]:
    """What the gateway's log says of each request, by its id. Numbers that are left out are zero."""

    def lines() -> list[dict[str, Any]]:
        said = gateway.log.read_text().splitlines()
        return [json.loads(line) for line in said if f'"tenant":"{tenant}"' in line]

    assert comes_true(lambda: len(lines()) >= count, 5)
    return {line["request_id"]: {"prompt_tokens": 0, "completion_tokens": 0} | line for line in lines()}


def assert_nothing_is_left(gateway: GatewayProcess, engine: Engine) -> None:
    assert comes_true(lambda: (engine.at_work(), gateway.in_flight()) == (0, 0), 5)
    free = {"prompt": "Docker is"}
    for tenant in ("steady", "twins", "hasty"):
        head = gateway.http.post("/tokenize", json=free, headers=signed(tenant)).raise_for_status().headers
        assert f'"concurrent";r={PLACES - 1}' in head["ratelimit"]
