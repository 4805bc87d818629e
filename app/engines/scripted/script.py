"""What an engine is told to do with one call."""

from dataclasses import dataclass
from typing import Any

from app.errors import EngineBroken, EngineError


@dataclass
class Script:
    """`words` are answered, one event a word. All else is as well as can be, unless it says otherwise."""

    words: tuple[str, ...] = ("Hello", ",", " world", ".")
    refuse_with: EngineError | None = None
    """Raised on entering, instead of an answer."""
    break_at: int | None = None
    """Break off after this many blocks."""
    break_with: type[EngineError] = EngineBroken
    stall_at: int | None = None
    """After this many blocks wait for the engine's `go_on`, which may never come."""
    tells_usage: bool = True
    ends_properly: bool = True
    first_after_s: float = 0.0
    """Until the first token: the prompt is read."""
    pace_s: float = 0.0
    """For each token."""
    endless: bool = False
    """After its last word it begins with the first again."""
    lies: Any = None
    """Told in place of the true usage."""
    prompt_tokens: int = 7
    events_per_block: int = 1
    """How many arrive together."""
