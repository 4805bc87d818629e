"""Somebody with a key, a line and questions."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Any
from uuid import UUID

from gevent import Greenlet, killall
from greenlet import GreenletExit

from crowd.answer import Answer
from crowd.figures import Figures
from crowd.line import Leaves, Line, never
from crowd.settings import Key, Settings

CHAT = "/v1/chat/completions"
TOPICS = ("a queue", "backpressure", "a deadline", "continuous batching", "a prefix cache", "a token", "a hot standby")

unfinished: set[tuple[str, str]] = set()
"""Idempotency keys, each with the key of its tenant, whose answers were not read to their end: what runs with them
would go on for its grace time, since the caller might come back."""


@dataclass
class Caller:
    line: Line
    settings: Settings
    key: Key
    figures: Figures
    dice: Random = field(default_factory=Random)

    def question(self, *, stream: bool, times: int = 1) -> bytes:
        """No two begin alike, so that no cache answers in place of the model."""
        text = f"({self.dice.randrange(10**6)}) What is {self.dice.choice(TOPICS)}?"
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.settings.max_tokens * times,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        if self.settings.model:
            body["model"] = self.settings.model
        return json.dumps(body).encode()

    def new_key(self) -> str:
        return str(UUID(int=self.dice.getrandbits(128)))

    def ask(self, kind: str, body: bytes, due: float, *, leaves: Leaves = never, idempotency_key: str = "") -> Answer:
        headers = {"Content-Type": "application/json", **self._said(idempotency_key)}
        unread = (self.key.secret, idempotency_key)
        if idempotency_key:
            unfinished.add(unread)
        try:
            answer = self.line.ask("POST", CHAT, body, headers, due=due, leaves=leaves)
        except GreenletExit:
            self.figures.note("cut off", kind, (perf_counter() - due) * 1e3)
            raise
        unfinished.discard(unread)
        return answer

    def _said(self, idempotency_key: str) -> dict[str, str]:
        said = {"X-Request-Timeout-Ms": str(round(self.settings.deadline_s * 1e3))}
        if self.key.secret:
            said["Authorization"] = f"Bearer {self.key.secret}"
        if idempotency_key:
            said["Idempotency-Key"] = idempotency_key
        return said


@contextmanager
def together(*calls: Greenlet) -> Iterator[None]:
    """They end with the block, however it ends."""
    try:
        for each in calls:
            each.join()
        yield
    finally:
        killall(calls)
