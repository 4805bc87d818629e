"""What is told of one request when it has ended, where traces are kept: numbers and names, never a text."""

from collections.abc import Iterable, Iterator

import msgspec

from app.engines.transformers.exchange import Exchange
from app.engines.transformers.orders import Order
from app.generation import Route
from app.trace import Trace


class Work(msgspec.Struct, frozen=True):
    """What the batch did for it, all its sequences together. Moments are on the process's clock."""

    prompt_tokens: int
    produced: int
    cached_tokens: int
    choices: int
    """Asked for, of each prompt."""
    max_tokens: int
    temperature: float
    top_p: float
    stream: bool
    finishes: tuple[str, ...]
    """How each of its sequences ended, in vLLM's words."""
    arrived: float
    started: float | None
    """Its first step, if it came to that."""
    first_token: float | None
    last_token: float | None

    @classmethod
    def of(cls, order: Order) -> "Work":
        jobs = [choice.job for choice in order.choices]
        one, per_prompt = jobs[0], len(jobs) // len(order.prompts)
        return cls(
            prompt_tokens=sum(map(len, order.prompts)),
            produced=sum(choice.produced for choice in order.choices),
            cached_tokens=sum(job.cached_tokens for job in jobs[::per_prompt]),
            choices=per_prompt,
            max_tokens=one.max_tokens,
            temperature=one.sampling.temperature,
            top_p=one.sampling.top_p,
            stream=order.stream,
            finishes=tuple(choice.finish or "abort" for choice in order.choices),
            arrived=one.arrived,
            started=min(_known(job.started for job in jobs), default=None),
            first_token=min(_known(job.first_token for job in jobs), default=None),
            last_token=max(_known(job.last_token for job in jobs), default=None),
        )


class Record(msgspec.Struct, frozen=True):
    trace: Trace
    route: Route
    began: float
    ended: float
    id: str
    """As the answer's `x-request-id` has it."""
    answer_id: str
    """As its body has it."""
    model: str
    """As it was asked for."""
    status: int
    error: str
    """The class of the error."""
    interrupted: bool
    """It failed after it had begun to answer."""
    prompt_tokens: int
    """Of embeddings, in which the batch has no part."""
    work: Work | None

    @classmethod
    def of(cls, exchange: Exchange, trace: Trace, route: Route, began: float, ended: float) -> "Record":
        return cls(
            trace=trace,
            route=route,
            began=began,
            ended=ended,
            id=exchange.id,
            answer_id=exchange.answer_id,
            model=exchange.model,
            status=exchange.status,
            error=exchange.error,
            interrupted=exchange.interrupted,
            prompt_tokens=exchange.prompt_tokens,
            work=None if exchange.order is None else Work.of(exchange.order),
        )


def _known(moments: Iterable[float | None]) -> Iterator[float]:
    return (moment for moment in moments if moment is not None)
