"""What an engine did for one call, as itself saw it: the truth that others are measured by."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.engines.scripted.dialects import counts, is_complete
from app.engines.scripted.script import Script
from app.errors import GatewayError
from app.generation import Call, Usage


class End(StrEnum):
    REFUSED = "refused"
    """It never began to work."""
    FINISHED = "finished"
    BROKEN = "broken"
    """By the engine: it broke off, died, or the time was over."""
    ABORTED = "aborted"
    """By whoever asked: they left before the end."""


@dataclass
class Work:
    call: Call
    script: Script
    began: float
    ended: float | None = None
    end: End | None = None
    error: GatewayError | None = None
    """What the gateway was told went wrong."""
    made: list[str] = field(default_factory=list)
    """The tokens."""
    told: Usage | None = None
    """The usage that was told last, unless it was a lie."""

    said_all: bool = False
    """The gateway was given the answer to its proper end, whatever came then."""

    def finish(self, how: End, now: float, error: GatewayError | None = None) -> None:
        """The first word on it stands; that nobody asks any more is known last."""
        if self.end is None:
            self.end, self.error = how, error
        self.ended = now

    def gives(self, block: bytes) -> None:
        self.said_all = is_complete(self.call, block)
        if b'"usage"' in block and self.script.lies is None:
            self.told = self.usage

    @property
    def text(self) -> str:
        return "".join(self.made)

    @property
    def usage(self) -> Usage:
        return Usage(self.script.prompt_tokens, len(self.made))

    @property
    def told_usage(self) -> Any:
        """As the engine tells it, true or not."""
        if not self.script.tells_usage:
            return None
        return counts(self.call, self.usage) if self.script.lies is None else self.script.lies
