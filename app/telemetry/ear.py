"""Whether somebody takes what is written: a pipe whose reader has stopped, or a terminal that is held, would keep the
writer, and with it whatever waits for that one."""

import select
from typing import IO

SURELY_TAKEN = select.PIPE_BUF
"""As many bytes go into whatever is open at once."""


def is_open(stream: IO[str], within_s: float = 0.0) -> bool:
    try:
        return bool(select.select([], [stream], [], within_s)[1])
    except (OSError, ValueError, TypeError):  # it is no file, or was closed: writing will tell
        return True
