"""An engine with a capacity: so many sequences at once, one token each a step, and a queue of its own for the rest.

    python -m bench.engine PORT [--sequences 32] [--step-ms 10] [--step-ms-per-sequence 0] [--prompt-steps 1]

It thinks nothing, but keeps time and count as real ones do: whoever comes joins the batch at the next step, reads its
prompt for some steps, then gets a token a step; a client that hangs up is out of the batch at once. What was executed,
made and abandoned stands at `GET /counts`, by the `user` that a request names.
"""

import argparse
import asyncio
import math
from collections import deque
from collections.abc import Sequence as Arguments
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httptools
import msgspec
import uvloop

MODEL = "bench"
CONTEXT = 8_192
UNLIMITED_TOKENS = 16
"""What a request gets that names no limit."""


@dataclass(frozen=True)
class Shape:
    """What an engine can do."""

    sequences: int = 32
    step_ms: float = 10.0
    step_ms_per_sequence: float = 0.0
    """A fuller batch takes longer for a step, as on a GPU."""
    prompt_steps: int = 1

    @property
    def full_step_s(self) -> float:
        return self.step_s(self.sequences)

    def step_s(self, running: int) -> float:
        return (self.step_ms + self.step_ms_per_sequence * running) / 1e3

    def service_s(self, tokens: float) -> float:
        """Of one request in a full batch. The last step of the prompt makes the first token."""
        return (self.prompt_steps - 1 + tokens) * self.full_step_s

    def capacity(self, tokens: float) -> float:
        """Requests a second."""
        return self.sequences / self.service_s(tokens)

    def arguments(self) -> list[str]:
        return [f"--{name.replace('_', '-')}={value}" for name, value in vars(self).items()]


class Count(msgspec.Struct):
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, sequence: "Sequence") -> None:
        self.requests += 1
        self.prompt_tokens += sequence.prompt_tokens
        self.completion_tokens += sequence.made

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Counts(msgspec.Struct):
    """All that ever came, by how it ended and for whom, and what is here now; the most since the last look."""

    taken: int = 0
    running: int = 0
    waiting: int = 0
    most_running: int = 0
    most_waiting: int = 0
    finished: dict[str, Count] = {}
    aborted: dict[str, Count] = {}

    @property
    def executed(self) -> int:
        return sum(count.requests for count in self.finished.values())


class Asked(msgspec.Struct):
    """Of a body, what this engine heeds."""

    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: str | None = None

    @property
    def tokens(self) -> int:
        return self.max_completion_tokens or self.max_tokens or UNLIMITED_TOKENS

    @property
    def prompt_tokens(self) -> int:
        """A word is a token, and so is each message's role."""
        return sum(1 + len(str(message.get("content", "")).split()) for message in self.messages)

    def wants(self, option: str) -> bool:
        return bool(self.stream_options and self.stream_options.get(option))


class Sequence:
    """One request at work, and how its answer is written. Its number is in it: no two executions write the same."""

    def __init__(self, number: int, asked: Asked, transport: asyncio.WriteTransport, prompt_steps: int) -> None:
        self.user = asked.user or ""
        self.prompt_tokens = asked.prompt_tokens
        self.made = 0
        self._wanted = asked.tokens
        self._reads = prompt_steps
        self._stream = bool(asked.stream)
        self._usage = asked.wants("include_usage")
        self._usage_along = self._usage and asked.wants("continuous_usage_stats")
        self._id = f"chatcmpl-{number}"
        self._transport = transport

    def step(self) -> bool:
        """One more token, once the prompt is read. Whether it was the last."""
        self._reads -= 1
        if self._reads > 0:
            return False
        self.made += 1
        last = self.made == self._wanted
        if self._stream:
            self._write_event(last)
        elif last:
            self._write_whole()
        return last

    def _write_event(self, last: bool) -> None:
        events = b""
        if self.made == 1:
            events = STREAM_HEAD + self._event({"role": "assistant", "content": ""})
        events += self._event({"content": f" w{self.made}"}, "length" if last else None)
        if last:
            if self._usage:
                events += _chunked({**self._head("chat.completion.chunk"), "choices": [], "usage": self._used()})
            events += DONE
        self._transport.write(events)

    def _event(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        payload = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self._usage_along:
            payload["usage"] = self._used()
        return _chunked(payload)

    def _write_whole(self) -> None:
        text = "".join(f" w{number}" for number in range(1, self.made + 1))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        answer = {**self._head("chat.completion"), "choices": [choice], "usage": self._used()}
        self._transport.write(_answer(200, _encode(answer)))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": 0, "model": MODEL}

    def _used(self) -> dict[str, int]:
        used = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.made}
        return {**used, "total_tokens": self.prompt_tokens + self.made}


class Engine:
    """The batch, its queue, and the steps. Steps stand on a schedule, so that a late timer costs no capacity."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.taken = 0
        self.most_waiting = 0
        self.most_running = 0
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._finished: dict[str, Count] = {}
        self._aborted: dict[str, Count] = {}
        self._next_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    def take(self, asked: Asked, transport: asyncio.WriteTransport) -> Sequence:
        self.taken += 1
        sequence = Sequence(self.taken, asked, transport, self.shape.prompt_steps)
        self._waiting.append(sequence)
        if self._timer is None:
            self._next_at = perf_counter()
            self._begin_step()
        self.most_waiting = max(self.most_waiting, len(self._waiting))
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Its client hung up. One that had just been finished counts as that."""
        for place in (self._running, self._waiting):
            if sequence in place:
                place.remove(sequence)
                self._aborted.setdefault(sequence.user, Count()).add(sequence)

    def counts(self) -> Counts:
        counts = Counts(
            taken=self.taken,
            running=len(self._running),
            waiting=len(self._waiting),
            most_running=self.most_running,
            most_waiting=self.most_waiting,
            finished=self._finished,
            aborted=self._aborted,
        )
        self.most_running, self.most_waiting = counts.running, counts.waiting
        return counts

    def _begin_step(self) -> None:
        while self._waiting and len(self._running) < self.shape.sequences:
            self._running.append(self._waiting.popleft())
        self.most_running = max(self.most_running, len(self._running))
        if not self._running:
            self._timer = None
            return
        self._next_at += self.shape.step_s(len(self._running))
        self._timer = asyncio.get_running_loop().call_later(self._next_at - perf_counter(), self._end_step)

    def _end_step(self) -> None:
        unfinished = []
        for sequence in self._running:
            if sequence.step():
                self._finished.setdefault(sequence.user, Count()).add(sequence)
            else:
                unfinished.append(sequence)
        self._running = unfinished
        self._begin_step()

    def metrics(self) -> bytes:
        made = sum(count.completion_tokens for count in (*self._finished.values(), *self._aborted.values()))
        values = {
            "vllm:num_requests_running": len(self._running),
            "vllm:num_requests_waiting": len(self._waiting),
            "vllm:kv_cache_usage_perc": len(self._running) / self.shape.sequences,
            "vllm:generation_tokens_total": made + sum(sequence.made for sequence in self._running),
        }
        kinds = {True: "counter", False: "gauge"}
        pages = (
            f'# TYPE {name} {kinds[name.endswith("_total")]}\n{name}{{model_name="{MODEL}"}} {value}\n'
            for name, value in values.items()
        )
        return "".join(pages).encode()


class Connection(asyncio.Protocol):
    """One request after another; the gateway does not pipeline."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._sequence: Sequence | None = None
        self._url = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # uvloop's are one class

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sequence is not None:
            self._engine.abort(self._sequence)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        match self._url:
            case b"/v1/chat/completions":
                self._chat()
            case b"/v1/models":
                model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "bench", "max_model_len": CONTEXT}
                self._transport.write(_answer(200, _encode({"object": "list", "data": [model]})))
            case b"/counts":
                self._transport.write(_answer(200, _encode(self._engine.counts())))
            case b"/metrics":
                self._transport.write(_answer(200, self._engine.metrics(), b"text/plain; version=0.0.4"))
            case b"/health":
                self._transport.write(_answer(200, b""))
            case _:
                self._transport.write(_answer(404, b'{"error":{"message":"Not found"}}'))

    def _chat(self) -> None:
        try:
            asked = _asked(self._body)
        except msgspec.DecodeError as error:
            message = {"error": {"message": str(error), "type": "BadRequestError", "code": 400}}
            self._transport.write(_answer(400, _encode(message)))
        else:
            self._sequence = self._engine.take(asked, self._transport)


_asked = msgspec.json.Decoder(Asked).decode
_encode = msgspec.json.Encoder().encode

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
STATUS = {200: b"200 OK", 400: b"400 Bad Request", 404: b"404 Not Found"}


def _answer(status: int, body: bytes, kind: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (STATUS[status], kind, len(body))
    return head + body


def _chunked(payload: object) -> bytes:
    event = b"data: %b\n\n" % _encode(payload)
    return b"%x\r\n%b\r\n" % (len(event), event)


DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


async def serve(port: int, shape: Shape) -> None:
    engine = Engine(shape)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(engine), "127.0.0.1", port, backlog=4_096
    )
    await server.serve_forever()


def main(argv: Arguments[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    for name, default in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args(argv))
    uvloop.run(serve(given.pop("port"), Shape(**given)))


if __name__ == "__main__":
    main()
