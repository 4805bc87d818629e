"""What an engine will read of a request, as bytes in the order in which it reads: tools, instructions, messages.

Not the prompt itself, which only the model's template makes. But where two prompts begin alike, so do these bytes.
"""

from collections.abc import Sequence

import msgspec

from app.wire.requests import AnyRequest, ChatRequest, CompletionRequest, MessagesRequest, ResponsesRequest

_append = msgspec.json.Encoder().encode_into


def prompt_of(request: AnyRequest, at_most: int) -> bytes:
    """No more of it than this. Empty for requests whose prompts leave nothing in an engine that helps the next one."""
    read = bytearray()
    for part in _parts(request):
        if len(read) >= at_most:
            break
        _append(part, read, len(read))
    return bytes(read[:at_most])


def _parts(request: AnyRequest) -> Sequence[object]:
    match request:
        case ChatRequest():
            return request.tools, *request.messages
        case CompletionRequest():
            return (request.prompt,) if isinstance(request.prompt, str) else request.prompt
        case ResponsesRequest():
            items = (request.input,) if isinstance(request.input, str) else request.input
            return request.tools, request.instructions, *items
        case MessagesRequest():
            return request.tools, request.system, *request.messages
        case _:
            return ()
