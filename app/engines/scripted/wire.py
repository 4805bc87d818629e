"""Tokens as OpenAI's wire format has them."""

from typing import Any

from app.engines.scripted.work import Work
from app.wire.sse import event


def whole(work: Work) -> bytes:
    message = {"role": "assistant", "content": work.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    answer = {**_head(work, "chat.completion"), "choices": [choice], **_usage(work)}
    return event(answer)[len("data: ") : -len("\n\n")]


def chunk(work: Work, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    along = _usage(work) if work.call.counts_along else {}
    return event({**_head(work, "chat.completion.chunk"), "choices": [choice], **along})


def usage(work: Work) -> bytes:
    return event({**_head(work, "chat.completion.chunk"), "choices": [], **_usage(work)})


def _head(work: Work, kind: str) -> dict[str, Any]:
    return {"id": work.call.id, "object": kind, "created": 0, "model": work.call.model}


def _usage(work: Work) -> dict[str, Any]:
    if not work.script.tells_usage:
        return {}
    if work.script.lies is not None:
        return {"usage": work.script.lies}
    prompt, made = work.usage.prompt_tokens, work.usage.completion_tokens
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}}
