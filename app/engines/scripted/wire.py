"""Tokens as the endpoints' wire formats have them."""

from typing import Any

from app.engines.scripted.work import Work
from app.generation import Route
from app.wire.sse import DONE, event


def whole(work: Work) -> bytes:
    return event(_body(work))[len("data: ") : -len("\n\n")]


def opening(work: Work) -> list[bytes]:
    """What comes before the first token."""
    call = work.call
    match call.route:
        case Route.RESPONSES:
            return [_named("response.created", response=_head(work, "response", status="in_progress"))]
        case Route.MESSAGES:
            begun = {**_message(work), "content": [], **_usage(work)}
            block = _named("content_block_start", index=0, content_block={"type": "text", "text": ""})
            return [_named("message_start", message=begun), block]
        case Route.COMPLETIONS:
            return [_chunk(work, {"text": ""})]
        case _:
            return [_chunk(work, {"delta": {"role": "assistant", "content": ""}})]


def said(work: Work, word: str) -> bytes:
    match work.call.route:
        case Route.RESPONSES:
            return _named("response.output_text.delta", output_index=0, content_index=0, delta=word)
        case Route.MESSAGES:
            return _named("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        case Route.COMPLETIONS:
            return _chunk(work, {"text": word})
        case _:
            return _chunk(work, {"delta": {"content": word}})


def closing(work: Work) -> list[bytes]:
    """What comes after the last token. The last of these says that the answer is complete."""
    match work.call.route:
        case Route.RESPONSES:
            return [_named("response.completed", response=_body(work))]
        case Route.MESSAGES:
            told = _named("message_delta", delta={"stop_reason": "end_turn"}, **_usage(work))
            return [_named("content_block_stop", index=0), told, _named("message_stop")]
        case Route.COMPLETIONS:
            last = _chunk(work, {"text": ""}, "stop")
        case _:
            last = _chunk(work, {"delta": {}}, "stop")
    told = event({**_head(work, _CHUNKS[work.call.route]), "choices": [], **_usage(work)})
    return [last, *([told] if work.script.tells_usage else []), DONE]


_CHUNKS = {Route.COMPLETIONS: "text_completion", Route.CHAT: "chat.completion.chunk"}


def _chunk(work: Work, said: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, **said, "finish_reason": finish_reason}
    along = _usage(work) if work.call.counts_along else {}
    return event({**_head(work, _CHUNKS[work.call.route]), "choices": [choice], **along})


def _body(work: Work) -> dict[str, Any]:
    match work.call.route:
        case Route.RESPONSES:
            content = [{"type": "output_text", "text": work.text, "annotations": []}]
            output = [{"type": "message", "role": "assistant", "content": content}]
            return _head(work, "response", status="completed", output=output, **_usage(work))
        case Route.MESSAGES:
            content = [{"type": "text", "text": work.text}]
            return {**_message(work), "content": content, "stop_reason": "end_turn", **_usage(work)}
        case Route.COMPLETIONS:
            return _whole_choice(work, "text_completion", text=work.text)
        case _:
            return _whole_choice(work, "chat.completion", message={"role": "assistant", "content": work.text})


def _whole_choice(work: Work, kind: str, **said: Any) -> dict[str, Any]:
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": "stop"}
    return _head(work, kind, choices=[choice], **_usage(work))


def _head(work: Work, kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": work.call.id, "object": kind, "created": 0, "model": work.call.model, **fields}


def _message(work: Work) -> dict[str, Any]:
    return {"id": work.call.id, "type": "message", "role": "assistant", "model": work.call.model}


def _usage(work: Work) -> dict[str, Any]:
    if not work.script.tells_usage:
        return {}
    if work.script.lies is not None:
        return {"usage": work.script.lies}
    prompt, made = work.usage.prompt_tokens, work.usage.completion_tokens
    if work.call.route in (Route.RESPONSES, Route.MESSAGES):
        return {"usage": {"input_tokens": prompt, "output_tokens": made, "total_tokens": prompt + made}}
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}}


def _named(name: str, **fields: Any) -> bytes:
    return b"event: %b\n%b" % (name.encode(), event({"type": name, **fields}))
