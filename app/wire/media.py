"""Media in a request: they travel inside it. Nothing is fetched on its behalf, by the gateway or by an engine."""

from typing import Any

from app.errors import InvalidRequest

_ADDRESSES = ("image_url", "video_url", "audio_url", "file_url", "file_data")
_BY_ADDRESS = ("url", "image", "video", "audio", "document", "file")
_TENSORS = ("image_embeds", "audio_embeds", "prompt_embeds")
_OPAQUE = ("input", "arguments", "parameters", "input_schema")
"""What a tool is called with, and how it is described: data of the client's, whatever words stand in it."""


def is_inside(url: str) -> bool:
    return url.startswith("data:")


def elsewhere(param: str) -> InvalidRequest:
    text = "Media are accepted as 'data:' URLs only; nothing is fetched on behalf of a request."
    return InvalidRequest(text, param=param, code="image_url_not_allowed")


def check_media(content: Any, param: str) -> None:
    """For the dialects whose content is not described by a struct: every address that an engine might follow."""
    waiting = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            _check_part(each, param)
            waiting += [value for name, value in each.items() if name not in _OPAQUE]


def _check_part(part: dict[str, Any], param: str) -> None:
    for name in _TENSORS:
        if name in part:
            raise InvalidRequest("Embeddings are not accepted.", param=param, code="unsupported_parameter")
    found = [part.get(name) for name in _ADDRESSES]
    if part.get("type") in _BY_ADDRESS:
        found.append(part.get("url"))
    for address in found:
        url = address.get("url") if isinstance(address, dict) else address
        if url is not None and not (isinstance(url, str) and is_inside(url)):
            raise elsewhere(param)
