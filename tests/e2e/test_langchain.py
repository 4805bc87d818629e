"""LangChain's ChatOpenAI against the gateway over the real engine."""

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.support.processes import Engine, GatewayProcess

QUESTION = "What is continuous batching?"


@pytest.fixture(scope="module")
def chat(gateway: GatewayProcess) -> ChatOpenAI:
    return ChatOpenAI(
        model=Engine.MODEL,
        base_url=f"{gateway.url}/v1",
        api_key=SecretStr("unused"),
        temperature=0,
        max_retries=0,
        stream_usage=True,
    )


def test_invoke_answers_and_tells_its_usage(chat: ChatOpenAI) -> None:
    done = chat.invoke([SystemMessage("You answer briefly."), HumanMessage(QUESTION)])
    assert "batch" in done.text
    assert done.response_metadata["finish_reason"] == "stop"
    usage = done.usage_metadata
    assert usage is not None
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] > 5


def test_stream_brings_the_same_in_pieces_and_the_usage_at_its_end(chat: ChatOpenAI) -> None:
    whole = chat.invoke(QUESTION)
    pieces = list(chat.stream(QUESTION))
    assert len(pieces) > 10
    assert "".join(piece.text for piece in pieces) == whole.text
    told = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert whole.usage_metadata is not None
    assert [each["output_tokens"] for each in told] == [whole.usage_metadata["output_tokens"]]


async def test_astream_and_ainvoke_say_the_same(chat: ChatOpenAI) -> None:
    whole = await chat.ainvoke(QUESTION)
    assert "".join([piece.text async for piece in chat.astream(QUESTION)]) == whole.text


def test_a_batch_is_answered_in_its_order(chat: ChatOpenAI) -> None:
    questions = [QUESTION, "Explain Docker in simple terms", "What is a KV cache?", "Why do streams need backpressure?"]
    alone = [chat.invoke(question).text for question in questions]
    assert [done.text for done in chat.batch(list(questions))] == alone
    assert len(set(alone)) == len(alone)


def test_a_chain_can_stop_early(chat: ChatOpenAI) -> None:
    done = chat.bind(stop=[" the"], max_tokens=30).invoke(QUESTION)
    assert " the" not in done.text


class Verdict(BaseModel):
    good: bool


def test_what_the_engine_cannot_do_is_a_clean_bad_request(chat: ChatOpenAI) -> None:
    @tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return city

    with pytest.raises(openai.BadRequestError) as raised:
        chat.bind_tools([weather]).invoke(QUESTION)
    assert (raised.value.param, raised.value.code) == ("tools", "unsupported_parameter")
    for method, param in (("json_schema", "response_format"), ("function_calling", "tools")):
        with pytest.raises(openai.BadRequestError) as raised:
            chat.with_structured_output(Verdict, method=method).invoke(QUESTION)  # type: ignore[arg-type]
        assert raised.value.param == param
