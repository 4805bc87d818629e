"""What came of one call. Times are those of `perf_counter`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crowd.sse import Stream


@dataclass(slots=True)
class Answer:
    due: float
    """When it was meant to be sent. What it took counts from here."""
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    """Their names are in lower case."""
    body: bytes = b""
    stream: Stream | None = None
    took_s: float = 0.0
    left: bool = False
    """By us, in the middle."""
    broken: str = ""
    """What happened to the connection."""

    @property
    def replayed(self) -> bool:
        return self.headers.get("idempotent-replayed") == "true"

    @property
    def replayable(self) -> bool:
        return self.headers.get("x-gllm-replayable") != "false"

    def json(self) -> dict[str, Any]:
        """Empty where there is none."""
        try:
            said = json.loads(self.body)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    @property
    def code(self) -> str:
        error = self.json().get("error")
        return str(error.get("code", "")) if isinstance(error, dict) else ""

    @property
    def usage(self) -> dict[str, Any] | None:
        return self.stream.usage if self.stream else self.json().get("usage")
