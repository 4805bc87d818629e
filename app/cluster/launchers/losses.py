"""How an engine is lost: it never came up, or it was there and is not any more."""

import signal
from contextlib import suppress


class EngineLost(Exception):
    """The text is a sentence; `tail` is what the engine itself said last."""

    def __init__(self, message: str, tail: list[str]) -> None:
        self.tail = tail
        super().__init__(message)


class EngineDidNotStart(EngineLost):
    pass


class EngineDied(EngineLost):
    """It was ready, and ended without being told to."""


def ending(code: int) -> str:
    """An exit code in words."""
    if code > 128:
        with suppress(ValueError):
            return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}"
