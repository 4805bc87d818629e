"""The front desk over a real batch in this process, where one can reach inside and break things."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import torch

from app.engines.transformers.engine import Engine
from app.engines.transformers.manager import Limits
from app.engines.transformers.model import Loaded
from app.engines.transformers.server import create_app
from app.engines.transformers.tokens import Tokens


@pytest.fixture(scope="module")
def loaded(demo_tokens: Tokens) -> Loaded:
    """The demo's words with a network that knows nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=demo_tokens.size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    return Loaded(LlamaForCausalLM(config).eval(), demo_tokens, 512, frozenset({4}), {})


@asynccontextmanager
async def serving(loaded: Loaded) -> AsyncIterator[tuple[Engine, httpx.AsyncClient]]:
    engine = Engine(loaded, "tiny", Limits(64, 4, 64, page_size=16), max_queue=4)
    engine.start()
    transport = httpx.ASGITransport(app=create_app(engine, version="test"))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            yield engine, client
    finally:
        await engine.stop()


async def complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"prompt": "a", "ignore_eos": True} | fields)


async def test_when_the_batch_thread_dies_health_turns_red_and_open_requests_end(loaded: Loaded) -> None:
    async with serving(loaded) as (engine, client):
        assert (await client.get("/health")).status_code == 200
        broken = patch.object(type(engine._batch._manager), "_recover", side_effect=RuntimeError("beyond repair"))
        async with asyncio.TaskGroup() as group:
            whole = group.create_task(complete(client, max_tokens=400))
            stream = group.create_task(complete(client, max_tokens=400, stream=True))
            while engine.running < 2:
                await asyncio.sleep(0.001)
            with broken, patch.object(loaded.network, "forward", side_effect=RuntimeError("injected")):
                await asyncio.wait([whole, stream], timeout=10)
        assert whole.result().status_code == 500
        assert whole.result().json()["error"]["code"] == "internal_error"
        assert "injected" not in whole.result().text + stream.result().text
        last = stream.result().text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "api_error"
        assert (await client.get("/health")).status_code == 503
        assert (await complete(client, max_tokens=2)).status_code == 500
        assert (await client.get("/metrics")).status_code == 200


async def test_a_request_that_breaks_its_step_is_answered_500_and_others_200(loaded: Loaded) -> None:
    real = loaded.network.forward
    poison = 77

    def forward(*args: Any, **kwargs: Any) -> Any:
        if bool((kwargs["input_ids"][0, :-1] == poison).any()):
            raise RuntimeError("injected")
        return real(*args, **kwargs)

    ban = {"logit_bias": {str(poison): -100}, "temperature": 0}
    async with serving(loaded) as (engine, client):
        expected = (await complete(client, max_tokens=60, **ban)).json()["choices"]
        with patch.object(loaded.network, "forward", forward):
            good = [complete(client, max_tokens=60, **ban) for _ in range(3)]
            bad, *others = await asyncio.gather(complete(client, prompt=[poison] * 5), *good)
        assert bad.status_code == 500
        assert [other.json()["choices"] for other in others] == [expected] * 3
        assert engine.healthy
        assert engine.metrics.page().decode().count('finished_reason="error",model_name="tiny"} 1.0') == 1


async def test_a_model_without_hidden_states_answers_501_to_embeddings(loaded: Loaded) -> None:
    async with serving(loaded) as (_, client):
        with patch.object(Loaded, "embed", return_value=None):
            answer = await client.post("/v1/embeddings", json={"input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_supported_by_engine")


async def test_a_defect_is_a_500_with_a_request_id_and_no_inner_text(loaded: Loaded) -> None:
    async with serving(loaded) as (_, client):
        with patch.object(Engine, "generate", side_effect=ZeroDivisionError("secret")):
            answer = await complete(client, max_tokens=2)
        assert answer.status_code == 500
        assert answer.headers["x-request-id"]
        assert "secret" not in answer.text
        assert (await complete(client, max_tokens=2)).status_code == 200


async def test_places_are_given_back_on_every_way_out(loaded: Loaded) -> None:
    async with serving(loaded) as (engine, client):
        await complete(client, max_tokens=3, n=4)
        await complete(client, max_tokens=3, stream=True)
        await complete(client, max_tokens=3, stop="a")
        await client.post("/v1/embeddings", json={"input": ["a", "b"]})
        assert (await complete(client, max_tokens=600)).status_code == 400
        assert (await complete(client, max_tokens=3, n=8, prompt=["a", "b"])).status_code == 503
        work = asyncio.timeout(0.05)
        with pytest.raises(TimeoutError):
            async with work:
                await complete(client, max_tokens=500)
        assert engine._taken == 0
        assert not engine._feeds
