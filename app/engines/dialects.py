"""An answer of given words, as each endpoint writes it: for engines that make their answers up."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from app.generation import Call, Route, Usage
from app.wire.sse import DONE, event


def whole(call: Call, words: Sequence[str], usage: Usage | None) -> bytes:
    """One JSON body."""
    return event(_body(call, "".join(words), usage))[6:-2]


def events(call: Call, words: Sequence[str], usage: Usage | None) -> Iterator[bytes]:
    """One event a word, between those that begin and end a stream. The last one says that it is complete."""
    match call.route:
        case Route.RESPONSES:
            return _response(call, words, usage)
        case Route.MESSAGES:
            return _message(call, words, usage)
        case Route.COMPLETIONS:
            return _chunks(call, "text_completion", ({"text": word} for word in words), {"text": ""}, usage)
        case _:
            first: dict[str, Any] = {"delta": {"role": "assistant", "content": ""}}
            deltas = ({"delta": {"content": word}} for word in words)
            return _chunks(call, "chat.completion.chunk", chain([first], deltas), {"delta": {}}, usage)


def _body(call: Call, text: str, usage: Usage | None) -> dict[str, Any]:
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
            body = _choice(call, "text_completion", {"text": text}, "stop")
        case _:
            message = {"role": "assistant", "content": text}
            body = _choice(call, "chat.completion", {"message": message}, "stop")
    return body | ({"usage": _counts(call, usage)} if usage is not None else {})


def _choice(call: Call, kind: str, said: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
    return {"id": call.id, "object": kind, "created": 0, "model": call.model, "choices": [choice]}


def _counts(call: Call, usage: Usage) -> dict[str, int]:
    if call.route in (Route.RESPONSES, Route.MESSAGES):
        return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
    counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    return {**counts, "total_tokens": usage.tokens}


def _chunks(
    call: Call, kind: str, said: Iterator[dict[str, Any]], last: dict[str, Any], usage: Usage | None
) -> Iterator[bytes]:
    yield from (event(_choice(call, kind, each)) for each in said)
    yield event(_choice(call, kind, last, "stop"))
    if usage is not None:
        yield event({**_choice(call, kind, {}), "choices": [], "usage": _counts(call, usage)})
    yield DONE


def _response(call: Call, words: Sequence[str], usage: Usage | None) -> Iterator[bytes]:
    yield _named("response.created", response={"id": call.id, "object": "response", "status": "in_progress"})
    for word in words:
        yield _named("response.output_text.delta", output_index=0, content_index=0, delta=word)
    yield _named("response.completed", response=_body(call, "".join(words), usage))


def _message(call: Call, words: Sequence[str], usage: Usage | None) -> Iterator[bytes]:
    counts = _counts(call, usage) if usage is not None else {}
    begun = {"id": call.id, "type": "message", "role": "assistant", "model": call.model, "content": []}
    yield _named("message_start", message={**begun, "usage": {**counts, "output_tokens": 0}} if counts else begun)
    yield _named("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for word in words:
        yield _named("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    yield _named("content_block_stop", index=0)
    yield _named("message_delta", delta={"stop_reason": "end_turn"}, **({"usage": counts} if counts else {}))
    yield _named("message_stop")


def _named(name: str, **fields: Any) -> bytes:
    return b"event: %b\n%b" % (name.encode(), event({"type": name, **fields}))
