"""Whether to try again, and after what pause. Arithmetic only; who retries is `dispatch`."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import GatewayError


@dataclass(frozen=True)
class Retry:
    attempts: int = 3
    first_pause_s: float = 0.02
    longest_pause_s: float = 1.0
    jitter: Callable[[], float] = random.random

    def pause_after(self, attempt: int, error: GatewayError, left_s: float) -> float | None:
        """Seconds to wait before the next attempt, or `None` to give up: full jitter, within the deadline."""
        if not error.retryable or attempt >= self.attempts:
            return None
        pause = self.jitter() * min(self.longest_pause_s, self.first_pause_s * 2 ** (attempt - 1))
        return pause if pause < left_s else None
