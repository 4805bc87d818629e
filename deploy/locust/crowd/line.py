"""One caller's connections to the gateway.

geventhttpclient, as in Locust's FastHttpUser, but without its layers: a stream is read event by event, each with its
time, and leaving it closes the connection at once.
"""

from collections.abc import Callable, Mapping
from time import perf_counter

from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError, HTTPSocketPoolResponse

from crowd.answer import Answer
from crowd.sse import Stream

GRACE_S = 15.0
"""Longer than the gateway was given; after that it is we who have no patience."""
CONNECT_S = 10.0
MOST_EVENTS = 100_000


Leaves = Callable[[Stream], bool]
"""Asked after every event whether this was enough."""


def never(stream: Stream) -> bool:
    return False


class Line:
    def __init__(self, host: str, deadline_s: float, *, most_at_once: int = 1) -> None:
        self._http = HTTPClient.from_url(
            host, concurrency=most_at_once, connection_timeout=CONNECT_S, network_timeout=deadline_s + GRACE_S
        )

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        due: float | None = None,
        leaves: Leaves = never,
    ) -> Answer:
        """Never raises for what the gateway or the network does."""
        answer = Answer(perf_counter() if due is None else due)
        try:
            response = self._http.request(method, path, body, dict(headers or {}))
            try:
                self._read(response, answer, leaves)
            finally:
                response.release()
        except (OSError, HTTPParseError) as error:
            answer.broken = f"{type(error).__name__}: {error}".strip(": ")
        answer.took_s = perf_counter() - answer.due
        return answer

    def _read(self, response: HTTPSocketPoolResponse, answer: Answer, leaves: Leaves) -> None:
        answer.status = response.status_code
        answer.headers = {name.lower(): value for name, value in response.items()}
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            answer.body = response.read()
            return
        stream = answer.stream = Stream()
        blocks: list[bytes] = []
        while len(blocks) < MOST_EVENTS and (block := response.readline(b"\n\n")):
            stream.hear(block, perf_counter())
            blocks.append(block)
            if leaves(stream):
                answer.left = True
                return
        blocks.append(response.read())
        answer.body = b"".join(blocks)
