"""The one way from bytes to a checked struct, and the words for what is wrong with them."""

import re
from collections.abc import Callable
from typing import NoReturn

import msgspec
from msgspec import Raw

from app.errors import InvalidRequest
from app.generation import Route
from app.wire.fields import MAX_PROMPTS, HostedTools, Messages, Prompt, Tools
from app.wire.media import check_media, elsewhere, is_inside
from app.wire.requests import (
    REQUESTS,
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    MessagesRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from app.wire.schemas import check_schema

_DECODE: dict[Route, Callable[[bytes], AnyRequest]] = {
    route: msgspec.json.Decoder(struct).decode for route, struct in REQUESTS.items()
}


def parse(route: Route, body: bytes) -> AnyRequest:
    """The checked request, or `InvalidRequest` that names the field."""
    try:
        if not body.isascii():
            str(body, "utf-8")  # msgspec steps over a field kept as Raw without looking at its encoding
        request = _DECODE[route](body)
    except msgspec.ValidationError as error:
        _refuse_value(str(error))
    except msgspec.DecodeError:
        raise InvalidRequest("The body is not valid JSON.", code="invalid_json") from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="nesting_too_deep") from None
    match request:
        case ChatRequest():
            _check_sampled(request)
            _check_messages(request.messages)
            _check_tools(request.tools)
            if request.top_logprobs and not request.logprobs:
                raise InvalidRequest(
                    "'top_logprobs' needs 'logprobs': true.", param="top_logprobs", code="invalid_value"
                )
        case CompletionRequest():
            _check_sampled(request)
            _check_prompt(request.prompt, "prompt")
        case EmbeddingRequest():
            _check_prompt(request.input, "input")
        case ResponsesRequest():
            check_media(request.input, "input")
            check_schema(request.text, "text")
            check_schema(request.structured_outputs, "structured_outputs")
            _check_hosted_tools(request.tools)
        case MessagesRequest():
            check_media([turn.content for turn in request.messages], "messages")
            check_media(request.system, "system")
            check_schema(request.output_config, "output_config")
            _check_hosted_tools(request.tools)
        case TokenizeRequest():
            if (request.prompt is None) == (request.messages is None):
                raise InvalidRequest("Give either 'prompt' or 'messages'.", param="prompt", code="invalid_value")
            _check_messages(request.messages or [])
            _check_tools(request.tools)
        case DetokenizeRequest():
            pass
    return request


_AT = re.compile(r" - at (?:`\w+` in )?`\$\.?(?P<path>[\w.\[\]]{0,128})`$", re.ASCII)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`$")
"""Names are the client's own words and may look like a path; a true path is short and comes last."""

_NOT_HERE = "This field is not accepted here."
_NOT_ACCEPTED = {
    **{
        f"guided_{kind}": f"vLLM no longer obeys this field: say 'structured_outputs': {{'{kind}': ...}} instead."
        for kind in ("json", "regex", "choice", "grammar")
    },
    "functions": "OpenAI replaced this field by 'tools': say 'tools': [{'type': 'function', 'function': ...}] instead.",
    "function_call": "OpenAI replaced this field by 'tool_choice'.",
}
"""Engines would answer as if these had not been said."""


def _refuse_value(text: str) -> NoReturn:
    """Turn msgspec's sentence into ours: which field, and what was expected of it."""
    at = _AT.search(text)
    path = at["path"] if at else ""
    reason = text[: at.start()] if at else text
    if unknown := _UNKNOWN.match(reason):
        param = _join(path, unknown["name"])
        raise InvalidRequest(_NOT_ACCEPTED.get(param, _NOT_HERE), param=param, code="unsupported_parameter")
    if missing := _MISSING.match(reason):
        param = _join(path, missing["name"])
        raise InvalidRequest("This field is required.", param=param, code="missing_required_parameter")
    expected = reason.replace("`", "'").replace("array", "list")
    if " matching regex " in expected:
        expected = "This is not in the accepted form"
    elif expected.startswith("Invalid enum value"):  # msgspec repeats the value here, which may be long and is not ours
        expected = "This is not one of the accepted values"
    code = "invalid_type" if ", got" in reason else "invalid_value"
    raise InvalidRequest(f"{expected}.", param=path[:64] or None, code=code)


def _join(path: str, name: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in name[:64])
    return f"{path}.{shown}" if path else shown


def _check_sampled(request: ChatRequest | CompletionRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' needs 'stream': true.", param="stream_options", code="invalid_value")
    check_schema(request.structured_outputs, "structured_outputs")
    if (wanted := request.response_format) is not None:
        for raw in (*(wanted.json_schema or {}).values(), wanted.structures, wanted.format):
            check_schema(raw, "response_format")


def _check_tools(tools: Tools | None) -> None:
    for index, tool in enumerate(tools or ()):
        if tool.function.parameters:
            check_schema(Raw(msgspec.json.encode(tool.function.parameters)), f"tools[{index}].function.parameters")


def _check_hosted_tools(tools: HostedTools | None) -> None:
    for index, tool in enumerate(tools or ()):
        for name, raw in tool.items():
            if name in ("server_url", "connector_id", "authorization", "headers"):
                text = "Tools that live elsewhere are not called on behalf of a request."
                raise InvalidRequest(text, param=f"tools[{index}].{name}", code="unsupported_parameter")
            check_schema(raw, f"tools[{index}]")


def _check_prompt(prompt: Prompt, param: str) -> None:
    if isinstance(prompt, str):
        return
    kinds = set(map(type, prompt))
    if len(kinds) > 1:
        raise InvalidRequest(
            "A list holds one kind: texts, token ids, or lists of token ids.", param=param, code="invalid_type"
        )
    if kinds != {int} and len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"At most {MAX_PROMPTS} prompts fit into one request.", param=param, code="invalid_value")


def _check_messages(messages: Messages) -> None:
    for index, message in enumerate(messages):
        content = message.content
        if message.role == "tool" and message.tool_call_id is None:
            param = f"messages[{index}].tool_call_id"
            raise InvalidRequest("This field is required.", param=param, code="missing_required_parameter")
        if isinstance(content, str):
            continue
        if content is None:
            if message.role != "assistant":
                raise InvalidRequest("Content is required.", param=f"messages[{index}].content", code="invalid_value")
            continue
        for place, part in enumerate(content):
            if not all(map(is_inside, part.media())):
                raise elsewhere(f"messages[{index}].content[{place}]")
