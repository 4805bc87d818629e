"""What an engine did for one call, as itself saw it: the truth that others are measured by."""

from dataclasses import dataclass, field
from enum import StrEnum

from app.engines.scripted.script import Script
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
    made: list[str] = field(default_factory=list)
    """The tokens."""

    def finish(self, how: End, now: float) -> None:
        """The first word on it stands; that nobody asks any more is known last."""
        self.end = self.end or how
        self.ended = now

    @property
    def text(self) -> str:
        return "".join(self.made)

    @property
    def usage(self) -> Usage:
        return Usage(self.script.prompt_tokens, len(self.made))
