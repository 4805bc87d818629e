"""Reading what an engine answers: only usage, the proper end, and failures; everything else passes as it came.

Each of the three wire dialects ends its streams and counts its tokens in its own way. What an engine says is not
believed blindly: counts that cannot be true are not counts, and what is no JSON at all is nonsense.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Raw

from app.errors import EngineBroken, EngineNonsense
from app.generation import Call, Route, Usage
from app.wire.edits import remove_field
from app.wire.sse import DONE, data_of, split

DETAIL_CHARS = 500

Count = Annotated[int, msgspec.Meta(ge=0, le=2_000_000_000)]
"""More than the largest call that is let in can use, and less than what comes of a number below 0 elsewhere (2**31 - 1,
2**32 - 1): a tenant would be charged for it, and owe for years."""


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct):
    """OpenAI's two spellings and Anthropic's in one: whichever is there is read."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: Count | None = None

    def merged(self, earlier: Usage | None) -> Usage:
        before = earlier or Usage()
        details = self.prompt_tokens_details or self.input_tokens_details
        cached = details.cached_tokens if details else self.cache_read_input_tokens
        prompt = self.input_tokens if self.prompt_tokens is None else self.prompt_tokens
        completion = self.output_tokens if self.completion_tokens is None else self.completion_tokens
        return Usage(
            prompt_tokens=before.prompt_tokens if prompt is None else prompt,
            completion_tokens=before.completion_tokens if completion is None else completion,
            cached_tokens=before.cached_tokens if cached is None else cached,
        )


class _Whole(msgspec.Struct):
    usage: Raw = Raw()


class _Chunk(msgspec.Struct):
    usage: Raw = Raw()
    choices: list[Raw] | None = None


class _Choice(msgspec.Struct):
    index: Count = 0


class _Nested(msgspec.Struct):
    """Where Responses (`response`) and Messages (`message`, or beside it) carry their usage."""

    usage: Raw = Raw()
    response: _Whole | None = None
    message: _Whole | None = None


class _Failure(msgspec.Struct):
    """OpenAI's form, and the older one of vLLM."""

    error: Raw = Raw()
    object: Any = None


_whole = msgspec.json.Decoder(_Whole).decode
_chunk = msgspec.json.Decoder(_Chunk).decode
_choice = msgspec.json.Decoder(_Choice).decode
_nested = msgspec.json.Decoder(_Nested).decode
_failure = msgspec.json.Decoder(_Failure).decode
_usage = msgspec.json.Decoder(_Usage).decode

UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def _there(raw: Raw) -> bool:
    return bytes(raw) not in (b"", b"null")


def read_usage(raw: Raw, earlier: Usage | None) -> Usage | None:
    """Usage as far as it is known now."""
    if not _there(raw):
        return earlier
    try:
        return _usage(raw).merged(earlier)
    except UNREADABLE:
        return earlier


def usage_of(body: bytes) -> Usage | None:
    """What a whole JSON answer says it used, if it says so. An answer that is no JSON object is `EngineNonsense`."""
    try:
        return read_usage(_whole(body).usage, None)
    except UNREADABLE as error:
        raise EngineNonsense(detail=_printable(body)) from error


_COUNT_ALONG = re.compile(rb',(?<!"choices":\[\],)"usage":(\{[^{}]*(?:\{[^{}]*\}[^{}]*)?\})\}(?=\r?\n)')
"""Usage as the last field of a chunk that has choices too. Inside a JSON string its quotes would be escaped."""


class ChatStream:
    """A stream of chat or completion chunks: `choices: []` carries the usage, `[DONE]` is the end.

    `counts_along`: the engine tells with each chunk what its choice has used so far, for us alone. So it is known to
    the token what to charge when a client hangs up. That is cut out without reading it; only the last is ever read.
    """

    __slots__ = ("_choices", "_counts_along", "_latest", "_per_prompt", "_shows_usage", "_usage", "ended", "events")

    def __init__(self, *, shows_usage: bool, counts_along: bool, choices: int = 1, prompts: int = 1) -> None:
        self.events = 0
        self.ended = False
        """The engine has said so."""
        self._shows_usage = shows_usage
        self._counts_along = counts_along
        self._choices = choices
        self._per_prompt = choices // prompts
        self._usage: Usage | None = None
        self._latest: dict[int, bytes] = {}
        """What was last told of each choice, since it was told of all."""

    @property
    def usage(self) -> Usage | None:
        """As far as it is known now."""
        if not self._latest:
            return self._usage
        read = {index: read_usage(Raw(count), self._usage) for index, count in self._latest.items()}
        known = {index: usage for index, usage in read.items() if usage is not None}
        return _sum(known, self._per_prompt) if known else self._usage

    def read(self, block: bytes) -> bytes:
        """What of `block` the client gets, possibly nothing."""
        shown = block
        self.events += block.count(b"\n\n")
        # `in` makes a TypeError for each look, and drops it: an integer could be meant
        if block.find(b'"usage"') >= 0:
            if self._counts_along:
                shown = _COUNT_ALONG.sub(self._note, block)
            if b'"usage"' in shown:
                shown = b"".join(map(self._count, split(shown)))
        if block.find(b'"error"') >= 0:
            self._check(block)
        if block.find(b"[DONE]") >= 0:
            self.ended = self.ended or any(one == DONE or data_of(one) == b"[DONE]" for one in split(block)[::-1])
        return shown

    def close(self) -> None:
        """The engine has ended the stream: did it end properly?"""
        if not self.ended:
            raise EngineBroken

    def _note(self, count: re.Match[bytes]) -> bytes:
        if self._choices == 1:
            self._latest[0] = count[1]
        else:
            self._tell_of(_index_beside(count), count[1])
        return b"}"

    def _tell_of(self, index: int, usage: bytes) -> None:
        self._latest[min(index, self._choices - 1)] = usage  # no more than were asked for, whatever an engine says

    def _count(self, one: bytes) -> bytes:
        if b'"usage"' not in one:
            return one
        data = data_of(one)
        try:
            chunk = _chunk(data)
        except UNREADABLE:
            return one
        if not _there(chunk.usage):
            return one
        if chunk.choices and self._choices > 1:
            self._tell_of(_index_of(chunk), bytes(chunk.usage))
        else:
            self._usage = read_usage(chunk.usage, self.usage)
            self._latest.clear()
        if self._shows_usage and not (self._counts_along and chunk.choices):
            return one
        if not chunk.choices:
            return b""
        return b"data: %b\n\n" % remove_field(data, "usage").replace(b"\n", b" ")

    def _check(self, block: bytes) -> None:
        for data in map(data_of, split(block)):
            if b'"error"' in data:
                try:
                    failure = _failure(data)
                except UNREADABLE:
                    continue
                if _there(failure.error) or failure.object == "error":
                    raise EngineBroken(detail=_printable(data))


def _index_beside(count: re.Match[bytes]) -> int:
    """Of the choice in the same event. No line ends inside JSON."""
    begin = count.string.rfind(b"\n", 0, count.start()) + 1
    try:
        return _index_of(_chunk(data_of(count.string[begin : count.end()])))
    except UNREADABLE:
        return 0


def _index_of(chunk: _Chunk) -> int:
    try:
        return _choice(chunk.choices[0]).index if chunk.choices else 0
    except UNREADABLE:
        return 0


def _sum(counts: dict[int, Usage], per_prompt: int) -> Usage:
    """Of choices, each of which tells its own tokens and its prompt's."""
    prompts = {index // per_prompt: usage for index, usage in counts.items()}.values()
    return Usage(
        sum(prompt.prompt_tokens for prompt in prompts),
        sum(usage.completion_tokens for usage in counts.values()),
        sum(prompt.cached_tokens for prompt in prompts),
    )


class _NamedStream:
    """Responses and Messages: events have names, usage is always shown, and the last one's name is the end."""

    __slots__ = ("ended", "events", "usage")

    end: re.Pattern[bytes]
    failure: re.Pattern[bytes]

    def __init__(self) -> None:
        self.events = 0
        self.usage: Usage | None = None
        self.ended = False

    def read(self, block: bytes) -> bytes:
        self.events += block.count(b"\n\n")
        if b'"usage"' in block:
            for one in split(block):
                self._count(one)
        if failed := self.failure.search(block):
            raise EngineBroken(detail=_printable(block[failed.start() :]))
        self.ended = self.ended or self.end.search(block) is not None
        return block

    def close(self) -> None:
        if not self.ended:
            raise EngineBroken

    def _count(self, one: bytes) -> None:
        try:
            found = _nested(data_of(one))
        except UNREADABLE:
            return
        for part in (found, found.response, found.message):
            if part is not None:
                self.usage = read_usage(part.usage, self.usage)


def _named(*names: str) -> re.Pattern[bytes]:
    """A line that gives an event one of these names. Inside JSON no line can begin."""
    return re.compile(rb"^event: ?(?:%b)\r?$" % "|".join(map(re.escape, names)).encode(), re.MULTILINE)


class ResponsesStream(_NamedStream):
    __slots__ = ()

    end = _named("response.completed", "response.incomplete")
    failure = _named("error", "response.failed")


class MessagesStream(_NamedStream):
    __slots__ = ()

    end = _named("message_stop")
    failure = _named("error")


AnswerStream = ChatStream | ResponsesStream | MessagesStream

_NAMED: dict[Route, type[ResponsesStream | MessagesStream]] = {
    Route.RESPONSES: ResponsesStream,
    Route.MESSAGES: MessagesStream,
}


def stream_reader(call: Call) -> AnswerStream:
    named = _NAMED.get(call.route)
    if named is not None:
        return named()
    return ChatStream(
        shows_usage=call.shows_usage, counts_along=call.counts_along, choices=call.choices, prompts=call.prompts
    )


def end_of(route: str) -> Callable[[bytes], bool]:
    """Tells whether a block of a stream has its proper end."""
    named = _NAMED.get(route)  # type: ignore[call-overload]  # a `Route` is a `str`
    if named is None:
        return lambda block: _DONE_AT_LAST.search(block, max(0, len(block) - _DONE_FITS)) is not None
    end = named.end
    return lambda block: end.search(block) is not None


_DONE_FITS = 20
_DONE_AT_LAST = re.compile(rb"(?:\A|\n)data: ?\[DONE\](?:\n\n|\r\n\r\n)\Z")
"""A line of its own: a comment may say the same, and ends nothing."""


def _printable(said: bytes) -> str:
    text = said[:DETAIL_CHARS].decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text)
