"""The official SDK against the gateway over each real engine: it finds what it expects, errors included."""

from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass

import openai
import pytest
from openai import AsyncOpenAI, Omit, OpenAI, omit
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionStreamOptionsParam

from tests.support.ports import free_port
from tests.support.processes import Engine, EngineSite, GatewayProcess, comes_true
from tests.support.vllm import ON_VLLM, VllmFleet

MODEL = Engine.MODEL
QUESTION = "What is continuous batching?"
ENDLESS = {"ignore_eos": True}
"""vLLM's word, and our engine's, for an answer that goes on until `max_tokens`."""


def sdk(url: str, retries: int = 0) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=retries, timeout=30)


@dataclass(frozen=True)
class Served:
    """A gateway, and all that it can give work to."""

    gateway: GatewayProcess
    engines: Collection[EngineSite]
    replicas: Collection[str]

    def at_work(self) -> int:
        return sum(engine.at_work() for engine in self.engines)

    def taken(self) -> int:
        return sum(engine.taken() for engine in self.engines)


@pytest.fixture(scope="module")
def by_transformers(engine: Engine, gateway: GatewayProcess) -> Served:
    return Served(gateway, [engine], [engine.url.removeprefix("http://")])


@pytest.fixture(scope="module")
def by_vllm(vllm: VllmFleet) -> Served:
    return Served(vllm.gateway, vllm.engines.values(), vllm.engines)


@pytest.fixture(scope="module", params=["by_transformers", pytest.param("by_vllm", marks=ON_VLLM)])
def served(request: pytest.FixtureRequest) -> Served:
    served: Served = request.getfixturevalue(request.param)
    return served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with sdk(served.gateway.url) as client:
        yield client


@pytest.fixture
async def async_client(served: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.gateway.url}/v1", api_key="unused", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def of_transformers(gateway: GatewayProcess) -> Iterator[OpenAI]:
    """For what the one engine does and the other does not."""
    with sdk(gateway.url) as client:
        yield client


# --- chat -------------------------------------------------------------------------------------------------------------


def test_a_question_is_answered(client: OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0)
    choice = done.choices[0]
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert "batch" in (choice.message.content or "")
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.usage.completion_tokens > 5
    assert done.usage.prompt_tokens_details is not None
    assert (done.model, done.object) == (MODEL, "chat.completion")


def test_a_stream_says_the_same_as_the_whole(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 10


def test_usage_comes_to_those_who_ask_for_it_and_to_no_others(client: OpenAI) -> None:
    def chunks(options: ChatCompletionStreamOptionsParam | Omit) -> list[ChatCompletionChunk]:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            stream=True,
            stream_options=options,
        )
        return list(stream)

    last = chunks({"include_usage": True})[-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 5
    for unasked in (chunks(omit), chunks({"include_usage": False})):
        assert all(chunk.usage is None and chunk.choices for chunk in unasked)


def test_a_stream_is_counted_though_its_client_did_not_ask(client: OpenAI, served: Served) -> None:
    def counted() -> float:
        return served.gateway.samples()["llm_generation_tokens_sum"]

    assert comes_true(lambda: served.gateway.in_flight() == 0, 5)  # what earlier tests have asked is counted
    before = counted()
    list(client.completions.create(model=MODEL, prompt="Docker", max_tokens=7, stream=True, extra_body=ENDLESS))
    assert comes_true(lambda: counted() - before == 7, 5)  # the client has the last event a moment before that


def test_several_choices_come_with_their_index(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        n=3,
        temperature=2,
        max_tokens=32,
        seed=1,
        extra_body=ENDLESS,
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in done.choices}) > 1
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        n=3,
        temperature=2,
        max_tokens=32,
        seed=1,
        stream=True,
        extra_body=ENDLESS,
    )
    texts = {0: "", 1: "", 2: ""}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert list(texts.values()) == [choice.message.content for choice in done.choices]


def test_a_stop_text_ends_the_answer_before_itself(client: OpenAI) -> None:
    asked = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0)
    whole = asked.choices[0].message.content or ""
    stop = whole.split(" ")[6]
    done = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0, stop=[stop]
    )
    assert done.choices[0].message.content == whole[: whole.index(stop)]
    assert done.choices[0].finish_reason == "stop"


def test_a_limit_is_kept_and_told(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_completion_tokens=3
    )
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert done.usage.completion_tokens == 3


def test_a_seed_makes_chance_repeat_itself(client: OpenAI) -> None:
    def said(seed: int) -> str | None:
        done = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=2,
            max_tokens=32,
            seed=seed,
            extra_body=ENDLESS,
        )
        return done.choices[0].message.content

    assert said(7) == said(7)
    assert len({said(seed) for seed in range(4)}) > 1


def test_logprobs_come_with_each_token(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for token in logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)
    assert "".join(token.token for token in logprobs.content) == done.choices[0].message.content


def test_a_conversation_has_a_system_and_a_past(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "You answer briefly."},
            {"role": "user", "content": [{"type": "text", "text": "What is Docker?"}]},
            {"role": "assistant", "content": "Docker packs programs into containers."},
            {"role": "user", "content": QUESTION},
        ],
        temperature=0,
    )
    assert done.choices[0].message.content


# --- completions, embeddings, models ----------------------------------------------------------------------------------


def test_a_text_is_continued(client: OpenAI) -> None:
    done = client.completions.create(model=MODEL, prompt="A container is", max_tokens=8, temperature=0)
    assert (done.object, done.choices[0].finish_reason) == ("text_completion", "length")
    streamed = client.completions.create(model=MODEL, prompt="A container is", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == done.choices[0].text


def test_a_prompt_can_be_echoed(client: OpenAI) -> None:
    done = client.completions.create(model=MODEL, prompt="A container is", max_tokens=4, temperature=0, echo=True)
    plain = client.completions.create(model=MODEL, prompt="A container is", max_tokens=4, temperature=0)
    assert done.choices[0].text == "A container is" + plain.choices[0].text


def test_several_prompts_are_several_answers_in_their_order(client: OpenAI) -> None:
    prompts = ["A container is", "A GPU is", "Batching means"]
    done = client.completions.create(model=MODEL, prompt=prompts, max_tokens=6, temperature=0)
    alone = [client.completions.create(model=MODEL, prompt=each, max_tokens=6, temperature=0) for each in prompts]
    assert [choice.text for choice in done.choices] == [each.choices[0].text for each in alone]
    assert done.usage is not None
    assert done.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in alone if each.usage)


def test_a_prompt_may_be_token_ids(client: OpenAI, served: Served) -> None:
    tokens = served.gateway.http.post("/tokenize", json={"prompt": "A container is"}).json()["tokens"]
    by_ids = client.completions.create(model=MODEL, prompt=tokens, max_tokens=6, temperature=0)
    by_text = client.completions.create(model=MODEL, prompt="A container is", max_tokens=6, temperature=0)
    assert by_ids.choices[0].text == by_text.choices[0].text
    several = client.completions.create(model=MODEL, prompt=[tokens, tokens[:3]], max_tokens=6, temperature=0)
    assert several.choices[0].text == by_text.choices[0].text
    assert len(several.choices) == 2


def test_texts_become_vectors(of_transformers: OpenAI) -> None:
    """The SDK asks for base64 by itself, and for floats when told to."""
    packed = of_transformers.embeddings.create(model=MODEL, input=["A container", "A GPU"])
    plain = of_transformers.embeddings.create(model=MODEL, input=["A container", "A GPU"], encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert len(one.embedding) > 64
        assert one.embedding == pytest.approx(other.embedding, rel=1e-5)
    assert packed.data[0].embedding != packed.data[1].embedding


def test_the_models_are_listed_and_found_by_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-9")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


# --- async ------------------------------------------------------------------------------------------------------------


async def test_the_async_client_gets_the_same(async_client: AsyncOpenAI, client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
    text = client.chat.completions.create(model=MODEL, messages=messages, temperature=0).choices[0].message.content
    done = await async_client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert done.choices[0].message.content == text
    stream = await async_client.chat.completions.create(model=MODEL, messages=messages, temperature=0, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text
    assert [model.id async for model in async_client.models.list()] == [MODEL]


async def test_the_async_client_gets_vectors(gateway: GatewayProcess) -> None:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=30) as client:
        assert len((await client.embeddings.create(model=MODEL, input="A container")).data) == 1


async def test_the_sdks_stream_helper_gathers_the_answer(async_client: AsyncOpenAI) -> None:
    async with async_client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0
    ) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "batch" in (final.choices[0].message.content or "")


# --- headers ----------------------------------------------------------------------------------------------------------


def test_the_raw_answer_shows_our_headers(client: OpenAI, served: Served) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], extra_headers={"x-request-id": "sdk-1"}
    )
    assert raw.headers["x-request-id"] == "sdk-1"
    assert raw.headers["x-gllm-replica"] in served.replicas
    assert raw.headers["x-gllm-attempts"] == "1"
    assert raw.headers["server-timing"].startswith("first_byte;dur=")
    assert raw.headers["content-type"] == "application/json"
    assert raw.request_id == "sdk-1"
    parsed = raw.parse()
    assert parsed._request_id == "sdk-1"
    assert parsed.choices[0].message.content


def test_the_streamed_answer_shows_them_before_its_end(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], stream=True
    ) as response:
        assert response.headers["x-request-id"].startswith("req-")
        assert response.headers["x-gllm-attempts"] == "1"
        assert response.headers["x-gllm-replica"]
        assert "dur=" in response.headers["server-timing"]
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_bad_value_is_a_bad_request_that_names_it(client: OpenAI, served: Served) -> None:
    taken = served.taken()
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], temperature=9)
    error = raised.value
    assert (error.status_code, error.param, error.code) == (400, "temperature", "invalid_value")
    assert error.type == "invalid_request_error"
    assert error.request_id is not None
    assert error.request_id.startswith("req-")
    assert served.taken() == taken


def test_a_dangerous_field_is_a_bad_request(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], extra_body={"chat_template": "{{ 1 }}"}
        )
    assert (raised.value.param, raised.value.code) == ("chat_template", "unsupported_parameter")


def test_what_the_engine_cannot_do_is_a_bad_request_that_names_it(of_transformers: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        of_transformers.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "x"}],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )
    assert raised.value.param == "tools"


def test_a_context_that_is_too_long_is_a_bad_request(client: OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model=MODEL, prompt="word " * 6_000, max_tokens=1)
    assert raised.value.code == "context_length_exceeded"
    assert served.at_work() == 0


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_an_unknown_path_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.images.generate(model=MODEL, prompt="a cat")
    assert raised.value.code == "not_found"


@pytest.mark.parametrize(
    ("headers", "prompt_bytes", "status", "code"),
    [
        ({}, 11 * 2**20, 413, "request_too_large"),
        ({"content-type": "text/plain"}, 5, 415, "unsupported_media_type"),
    ],
)
def test_other_refusals_are_status_errors(
    client: OpenAI, headers: dict[str, str], prompt_bytes: int, status: int, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        client.completions.create(model=MODEL, prompt="x" * prompt_bytes, extra_headers=headers)
    assert (raised.value.status_code, raised.value.code) == (status, code)
    assert raised.value.request_id is not None


def test_a_deadline_that_passes_is_a_server_error_and_ends_the_work(client: OpenAI, served: Served) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        client.completions.create(
            model=MODEL,
            prompt="On and on",
            max_tokens=1_900,
            extra_body=ENDLESS,
            extra_headers={"x-request-timeout-ms": "300"},
        )
    assert (raised.value.status_code, raised.value.code) == (504, "deadline_exceeded")
    assert comes_true(lambda: served.at_work() == 0, limit_s=1)


def test_a_client_that_runs_out_of_patience_ends_the_work(client: OpenAI, served: Served) -> None:
    impatient = client.with_options(timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        impatient.completions.create(model=MODEL, prompt="On and on", max_tokens=1_900, extra_body=ENDLESS)
    assert comes_true(lambda: served.at_work() == 0, limit_s=1)


def test_nobody_at_the_address_is_a_connection_error() -> None:
    with sdk(f"http://127.0.0.1:{free_port()}") as nowhere, pytest.raises(openai.APIConnectionError):
        nowhere.models.list()
