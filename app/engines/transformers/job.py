"""One sequence to generate, and the news of it."""

import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from app.engines.transformers.sampling import Logprobs, Row, Sampling

Finish = Literal["stop", "length", "error"]


@dataclass(eq=False)
class Job:
    """One sequence to generate. The batch thread writes to it until its last `News`; then nobody does. Only when its
    tokens came is written by the event loop, which times them."""

    id: str
    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    eos: frozenset[int]  # end without a reason given
    stop_ids: frozenset[int]  # end, and are named as the reason
    arrived: float = field(default_factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    cached_tokens: int = 0
    row: Row = field(init=False)
    trials: int = 0

    def __post_init__(self) -> None:
        self.row = Row(self.sampling, self.prompt)

    def ending(self, token: int) -> tuple[Finish | None, int | None]:
        """Whether the sequence ends with this token, just produced, and which stop token is to be named."""
        produced = len(self.row.produced)
        if produced >= self.sampling.min_tokens:
            if token in self.eos:
                return "stop", None
            if token in self.stop_ids:
                return "stop", token
        return ("length", None) if produced >= self.max_tokens else (None, None)


class News(NamedTuple):
    """What a step brought for one job: a token, or the end without one (`error`)."""

    job: Job
    token: int | None
    logprobs: Logprobs | None
    finish: Finish | None
    stop_token: int | None = None
