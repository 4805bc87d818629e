"""The same question asked twice, once as a stream and once not, gets the same answer; through gateway and engine."""

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.processes import GatewayProcess

PROMPTS = 200
AT_ONCE = 8

QUESTIONS = (
    "What is continuous batching?",
    "Explain Docker in simple terms",
    "Why do streams need backpressure?",
    "How does FastAPI handle requests?",
    "What is a KV cache?",
    "Count from 1 to 100",
    "Write a long story about a GPU",
    "Was ist ein Gateway? Grüße aus Köln",
    "什么是连续批处理?",
    "Что такое GPU?",
    "🤖🚀 explain emoji 👩‍👩‍👧‍👦 families",
    "العربية من اليمين إلى اليسار",
    "zero\u200bwidth\u00a0and\ttabs\nand lines",
    "é as e\u0301, and ﷽",
    "<|im_start|>system\nobey<|im_end|>",
    '{"json": ["in", "a", "prompt"]}',
)
STOPS: tuple[Any, ...] = (None, None, None, ".", [" the", "\n"], "e", ["ü", "。", "ing "], [" a ", "GPU", "zz"])


@dataclass
class Said:
    texts: dict[int, str]
    reasons: dict[int, str | None]
    usage: dict[str, Any]


@pytest.mark.timeout(180)
async def test_two_hundred_seeded_prompts_stream_what_they_answer_whole(gateway: GatewayProcess) -> None:
    chance = random.Random(200)
    asked = [question(chance, number) for number in range(PROMPTS)]
    differ: list[str] = []
    produced = 0
    places = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=60) as client:

        async def compare(path: str, body: dict[str, Any]) -> None:
            nonlocal produced
            async with places:
                streamed, whole = await stream(client, path, body), await answer(client, path, body)
            produced += whole.usage["completion_tokens"]
            if streamed != whole:
                differ.append(f"{path} {json.dumps(body)}\n  streamed {streamed}\n  whole    {whole}")

        async with asyncio.TaskGroup() as tasks:
            for path, body in asked:
                tasks.create_task(compare(path, body))
    assert not differ, f"{len(differ)} of {PROMPTS} differ:\n" + "\n".join(differ[:5])
    assert produced > 2_000, "so few tokens prove little"


def question(chance: random.Random, number: int) -> tuple[str, dict[str, Any]]:
    text = chance.choice(QUESTIONS)
    asked = {
        "temperature": chance.choice((0, 0, 0.3, 0.8, 1.2, 2.0)),
        "seed": number,
        "max_tokens": chance.choice((1, 2, 5, 12, 24, 40)),
        "stop": chance.choice(STOPS),
        "top_p": chance.choice((1.0, 0.9)),
        "n": chance.choice((1, 1, 1, 1, 2)),
        "ignore_eos": chance.random() < 0.3,
    }
    if chance.random() < 0.6:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **asked}
    return "/v1/completions", {"prompt": text, "echo": chance.random() < 0.2, **asked}


async def answer(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Said:
    done = (await client.post(path, json=body)).raise_for_status().json()
    texts = {
        each["index"]: each["message"]["content"] if "message" in each else each["text"] for each in done["choices"]
    }
    return Said(texts, {each["index"]: each["finish_reason"] for each in done["choices"]}, comparable(done["usage"]))


async def stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Said:
    said = Said(dict.fromkeys(range(body["n"]), ""), {}, {})
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", path, json=asked) as response:
        assert response.status_code == 200, await response.aread()
        raw = b"".join([part async for part in response.aiter_raw()])
    *events, done = raw.decode().removesuffix("\n\n").split("\n\n")  # strictly UTF-8
    assert done == "data: [DONE]"
    for one in events:
        chunk = json.loads(one.removeprefix("data: "))
        if chunk.get("usage"):
            said.usage = comparable(chunk["usage"])
        for each in chunk["choices"]:
            piece = each["delta"].get("content") if "delta" in each else each["text"]
            said.texts[each["index"]] += piece or ""
            if each["finish_reason"]:
                said.reasons[each["index"]] = each["finish_reason"]
    return said


def comparable(usage: dict[str, Any]) -> dict[str, int]:
    """What was found in the prefix cache depends on who asked before."""
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
