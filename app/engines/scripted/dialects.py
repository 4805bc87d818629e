"""An answer as each endpoint writes it, bit by bit: what begins it, each word, what ends it."""

from typing import Any

from app.generation import Call, Route, Usage
from app.wire.sse import DONE, event

NAMED = (Route.RESPONSES, Route.MESSAGES)
_LAST = {Route.RESPONSES: b"event: response.completed\n", Route.MESSAGES: b"event: message_stop\n"}


def counts(call: Call, usage: Usage) -> dict[str, int]:
    if call.route in NAMED:
        return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
    told = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    return {**told, "total_tokens": usage.tokens}


def whole(call: Call, text: str, usage: Any) -> bytes:
    """One JSON body; `usage` as it is to be told, or `None`."""
    return event(_body(call, text, usage))[len("data: ") : -len("\n\n")]


def begins(call: Call, usage: Any) -> list[bytes]:
    match call.route:
        case Route.RESPONSES:
            started = {"id": call.id, "object": "response", "status": "in_progress"}
            return [_named("response.created", response=started)]
        case Route.MESSAGES:
            message = {"id": call.id, "type": "message", "role": "assistant", "model": call.model, "content": []}
            return [
                _named("message_start", message=message | _told(usage)),
                _named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            ]
        case Route.COMPLETIONS:
            return []
        case _:
            return [_chunk(call, {"delta": {"role": "assistant", "content": ""}}, None)]


def says(call: Call, word: str, along: Any) -> bytes:
    """One event. `along` is the usage so far, where it is to be told with each."""
    match call.route:
        case Route.RESPONSES:
            return _named("response.output_text.delta", output_index=0, content_index=0, delta=word)
        case Route.MESSAGES:
            return _named("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        case Route.COMPLETIONS:
            return _chunk(call, {"text": word}, along)
        case _:
            return _chunk(call, {"delta": {"content": word}}, along)


def ends(call: Call, text: str, usage: Any) -> list[bytes]:
    """The last one says that the answer is complete."""
    match call.route:
        case Route.RESPONSES:
            return [_named("response.completed", response=_body(call, text, usage))]
        case Route.MESSAGES:
            return [
                _named("content_block_stop", index=0),
                _named("message_delta", delta={"stop_reason": "end_turn"}, **_told(usage)),
                _named("message_stop"),
            ]
    last: dict[str, Any] = {"text": ""} if call.route is Route.COMPLETIONS else {"delta": {}}
    told = [] if usage is None else [event({**_head(call), "choices": [], "usage": usage})]
    return [_chunk(call, last, None, "stop"), *told, DONE]


def is_complete(call: Call, block: bytes) -> bool:
    """Does the answer end with this block?"""
    return not call.stream or (_LAST[call.route] in block if call.route in NAMED else block.endswith(DONE))


def _body(call: Call, text: str, usage: Any) -> dict[str, Any]:
    match call.route:
        case Route.RESPONSES:
            content = [{"type": "output_text", "text": text, "annotations": []}]
            output = [{"type": "message", "role": "assistant", "content": content}]
            body = {"id": call.id, "object": "response", "status": "completed", "model": call.model, "output": output}
        case Route.MESSAGES:
            content = [{"type": "text", "text": text}]
            body = {"id": call.id, "type": "message", "role": "assistant", "model": call.model, "content": content}
            body["stop_reason"] = "end_turn"
        case Route.COMPLETIONS:
            body = {**_head(call), "choices": [_choice({"text": text}, "stop")]}
        case _:
            message = {"role": "assistant", "content": text}
            body = {**_head(call), "choices": [_choice({"message": message}, "stop")]}
    return body | _told(usage)


def _chunk(call: Call, said: dict[str, Any], along: Any, reason: str | None = None) -> bytes:
    return event({**_head(call), "choices": [_choice(said, reason)], **_told(along)})


def _choice(said: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, **said, "logprobs": None, "finish_reason": reason}


def _head(call: Call) -> dict[str, Any]:
    kind = "text_completion" if call.route is Route.COMPLETIONS else "chat.completion"
    if call.stream and call.route is not Route.COMPLETIONS:
        kind += ".chunk"
    return {"id": call.id, "object": kind, "created": 0, "model": call.model}


def _told(usage: Any) -> dict[str, Any]:
    return {} if usage is None else {"usage": usage}


def _named(name: str, **fields: Any) -> bytes:
    return b"event: %b\n%b" % (name.encode(), event({"type": name, **fields}))
