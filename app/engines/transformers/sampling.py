"""From logits to tokens: each row of a batch by its own rules.

Greedy rows cost one shared argmax and nothing else. The draw for a token depends on the seed and on the token's place
in the sequence only: not on the batch around it, not on whether the sequence was interrupted and taken up again.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

COLDEST = 1e-5
"""Below it a draw is always the likeliest token, and scores divided by it may be infinite; vLLM draws the same line."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one sequence are chosen. The field names are those of the wire."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    logprobs: int | None = None  # how many alternatives to report beside the chosen token; None: report nothing
    min_tokens: int = 0
    ends: frozenset[int] = frozenset()  # tokens that end the sequence, banned until `min_tokens` are there

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST or self.top_k == 1

    @property
    def penalised(self) -> bool:
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    @property
    def filtered(self) -> bool:
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0

    @property
    def plain(self) -> bool:
        """The most likely token, unchanged: nothing to do beyond the shared argmax."""
        return self.greedy and not (self.penalised or self.logit_bias or self.min_tokens or self.logprobs is not None)


class Logprobs(NamedTuple):
    """Of one chosen token and its likeliest alternatives, as the model gave them, before any processing."""

    chosen: float
    rank: int
    top: list[tuple[int, float]]


@dataclass(eq=False)
class Row:
    """What the sampler knows of one sequence, for as long as it lives. Only the batch thread touches it."""

    sampling: Sampling
    prompt: list[int]
    produced: list[int] = field(default_factory=list)
    logprobs: Logprobs | None = None  # of the last chosen token
    failure: Exception | None = None
    _counts: Tensor | None = None
    _seen: Tensor | None = None
    _counted: int = 0

    @property
    def place(self) -> int:
        """Where in the sequence the next token will stand."""
        return len(self.prompt) + len(self.produced)

    def counts(self, like: Tensor) -> Tensor:
        """How often each token was produced so far."""
        if self._counts is None:
            self._counts = torch.zeros_like(like)
        if fresh := self.produced[self._counted :]:
            index = torch.tensor(fresh, device=like.device)
            self._counts.index_add_(0, index, torch.ones(len(fresh), device=like.device, dtype=like.dtype))
            self._counted = len(self.produced)
        return self._counts

    def seen(self, like: Tensor) -> Tensor:
        """Which tokens stand in the prompt."""
        if self._seen is None:
            self._seen = torch.zeros_like(like, dtype=torch.bool)
            self._seen[torch.tensor(self.prompt, device=like.device)] = True
        return self._seen


def choose(logits: Tensor, rows: list[Row]) -> Tensor:
    """One token a row. A row that cannot be served gets its `failure` set, and disturbs no other."""
    tokens = logits.argmax(dim=-1)
    special = [index for index, row in enumerate(rows) if not row.sampling.plain]
    if not special:
        return tokens
    try:
        tokens[special] = _choose_special(logits[special], [rows[index] for index in special])
    except Exception:  # whose fault it is shows when each row is served alone
        for index in special:
            try:
                tokens[index] = _choose_special(logits[index : index + 1].clone(), [rows[index]])[0]
            except Exception as error:
                rows[index].failure = error
    return tokens


def _choose_special(logits: Tensor, rows: list[Row]) -> Tensor:
    raw = logits.clone() if any(row.sampling.logprobs is not None for row in rows) else logits
    for scores, row in zip(logits, rows, strict=True):
        _adjust(scores, row)
    tokens = logits.argmax(dim=-1)
    drawn = [index for index, row in enumerate(rows) if not row.sampling.greedy]
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [rows[index] for index in drawn])
    for index, row in enumerate(rows):
        if row.sampling.logprobs is not None:
            row.logprobs = _logprobs(raw[index], int(tokens[index]), row.sampling.logprobs)
    return tokens


def _adjust(scores: Tensor, row: Row) -> None:
    """Penalties, bias and bans, in place."""
    sampling = row.sampling
    if sampling.penalised:
        counts = row.counts(scores)
        if sampling.repetition_penalty != 1.0:
            repeated = (counts > 0) | row.seen(scores)
            penalty = sampling.repetition_penalty
            scores.copy_(torch.where(repeated, torch.where(scores > 0, scores / penalty, scores * penalty), scores))
        if sampling.frequency_penalty:
            scores.sub_(counts, alpha=sampling.frequency_penalty)
        if sampling.presence_penalty:
            scores.sub_((counts > 0).to(scores.dtype), alpha=sampling.presence_penalty)
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    if len(row.produced) < sampling.min_tokens and sampling.ends:
        scores[list(sampling.ends)] = -math.inf


def _draw(logits: Tensor, rows: list[Row]) -> Tensor:
    """One draw a row: every token gets a number that only seed, place and token decide, and the best quotient wins.

    (The exponential race, which draws each token with its probability.) To look a single number up in the running sum
    of the probabilities would be cheaper, but there each of the vocabulary's borders moves with the last bits of the
    logits, which depend on how many rows were multiplied together: one text in ten came out differently in a batch of
    32. Here only a near tie of the two best can do that.
    """
    temperature = torch.tensor([row.sampling.temperature for row in rows], device=logits.device)
    probabilities = torch.softmax(logits / temperature.unsqueeze(1), dim=-1)
    if not bool(torch.isfinite(probabilities).all()):
        raise ArithmeticError("The model gave no usable probabilities.")
    filtered = [index for index, row in enumerate(rows) if row.sampling.filtered]
    if filtered:
        ordered, order = probabilities[filtered].sort(dim=-1, descending=True, stable=True)
        kept = _keep(ordered, [rows[index].sampling for index in filtered])
        probabilities[filtered] = torch.zeros_like(ordered).scatter_(1, order, kept)
    race = torch.empty_like(probabilities)
    generator = torch.Generator(logits.device)
    for numbers, row in zip(race, rows, strict=True):
        numbers.exponential_(generator=generator.manual_seed(draw_seed(row.sampling.seed, row.place)))
    return (probabilities / race.clamp_min_(torch.finfo(race.dtype).tiny)).argmax(dim=-1)


def _keep(ordered: Tensor, samplings: list[Sampling]) -> Tensor:
    """Zero what min_p, then top_k, then top_p rule out. The likeliest token always stays."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=ordered.device).unsqueeze(1)

    width = ordered.shape[1]
    rank = torch.arange(width, device=ordered.device).unsqueeze(0)
    allowed = ordered >= ordered[:, :1] * column([each.min_p for each in samplings])
    allowed &= rank < column([each.top_k or width for each in samplings])
    kept = ordered * allowed
    before = kept.cumsum(dim=-1) - kept
    top_p = column([each.top_p if each.top_p < 1.0 else math.inf for each in samplings])
    allowed &= before < top_p * kept.sum(dim=-1, keepdim=True)
    allowed[:, 0] = True
    return ordered * allowed


def _logprobs(raw: Tensor, token: int, count: int) -> Logprobs:
    logprobs = torch.log_softmax(raw, dim=-1)
    chosen = logprobs[token]
    rank = int((logprobs > chosen).sum()) + 1
    values, tokens = logprobs.topk(min(count, raw.shape[0]))
    return Logprobs(float(chosen), rank, list(zip(tokens.tolist(), values.tolist(), strict=True)))


def draw_seed(seed: int, place: int) -> int:
    """What decides the draw at a place of a sequence (two rounds of SplitMix64's finaliser)."""
    return _mix(_mix(seed) + place)


def derived(seed: int, index: int) -> int:
    """The seed of the choice `index` of a request: the first keeps the request's own."""
    return seed if index == 0 else _mix(_mix(seed ^ 0x5851F42D4C957F2D) + index)


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return state ^ (state >> 31)
