"""What is counted of calls: the requests that engines answer."""

from collections.abc import Callable, Container, Iterator

from prometheus_client.metrics_core import Metric

from app.errors import Outcome
from app.generation import Call, Route, Usage
from app.telemetry.metrics import families as f
from app.telemetry.metrics.labels import MOST_MODELS, MOST_TENANTS, OTHER, REASONS, Few
from app.telemetry.metrics.tallies import Count, Kept, Number, Spread
from app.telemetry.phases import phases_of
from app.telemetry.record import Attempt, Keyed, Reason, Record

CALLS = frozenset(Route)
GENERATIONS = frozenset((Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES))
REFUSED = (429, 503)

Kind = tuple[str, str, Outcome, Reason | None]
"""Labels of model and tenant, how it ended, and why its last replica was chosen."""


class Calls:
    def __init__(self, policy: str) -> None:
        self.known_models: Callable[[], Container[str]] | None = None
        """Those that become labels. Unsaid, any does, as long as they are few."""
        self._policy = policy
        self._numbers = Kept(self._numbers_of)
        self._tokens = Kept(self._tokens_of)
        self._models = Few(MOST_MODELS, self._forget)
        self._models.is_known = self._knows
        self._tenants = Few(MOST_TENANTS)
        self._outcomes = Count(f.OUTCOMES)
        self._refusals = Count(f.REFUSALS, [(reason,) for reason in sorted(REASONS)])
        self._ttft = Spread(f.TTFT)
        self._tpot = Spread(f.TPOT)
        self._waits = Spread(f.QUEUE_WAIT)
        self._prompt_tokens = Count(f.PROMPT_TOKENS)
        self._cached_tokens = Count(f.CACHED_TOKENS)
        self._generated_tokens = Count(f.GENERATED_TOKENS)
        self._of_models = (self._ttft, self._tpot, self._waits)
        self._tokens_of_models = (self._prompt_tokens, self._cached_tokens, self._generated_tokens)
        self._tenant_requests = Count(f.TENANT_REQUESTS)
        self._tenant_tokens = Count(f.TENANT_TOKENS)
        self._routed = Count(f.ROUTED, [(policy, reason.value) for reason in Reason])
        self._hedges = Count(f.HEDGES, [("won",), ("lost",)])
        self._idempotency = Count(f.IDEMPOTENCY, [(result.value,) for result in Keyed])
        latency = Spread(f.LATENCY)
        self._first_byte, self._last_byte = latency.of(("ttft",)), latency.of(("total",))
        answer_tokens = Spread(f.ANSWER_TOKENS)
        self._answer_tokens = answer_tokens.of()
        overhead = Spread(f.OVERHEAD)
        self._intake, self._limits, self._route, self._relay, self._own = (
            overhead.of((phase,)) for phase in ("intake", "limits", "route", "relay", "total")
        )
        self._tallies: tuple[Count | Spread, ...] = (
            *(self._outcomes, self._refusals, self._tenant_requests, self._tenant_tokens, self._routed, self._hedges),
            *(*self._of_models, *self._tokens_of_models, self._idempotency, latency, answer_tokens, overhead),
        )
        self.begin("")

    def begin(self, model: str) -> None:
        """It is 0 before anything happens."""
        label = self._models.of(model)
        for outcome in Outcome:
            self._outcomes.of((label, outcome.value))
        if model:
            for spread in self._of_models:
                spread.of((label,))
            for count in self._tokens_of_models:
                count.of((label,))

    def ended(self, record: Record) -> None:
        if record.endpoint not in CALLS:
            return
        model = self._models.of(record.model)
        kind = (model, self._tenants.of(record.tenant), record.outcome, record.routed_by)
        for number in self._numbers[kind]:
            number.value += 1
        if record.status in REFUSED:
            self._refusals.add((record.code if record.code in REASONS else OTHER,))
        if record.queued_s:
            self._waits.of((model,)).add(record.queued_s)
        if record.keyed is not None:
            self._idempotency.add((record.keyed,))
        if len(record.tries) > 1:
            self._tried_again(record)
        if record.parsed:
            self._own_time(record)
        if record.first_byte and record.endpoint in GENERATIONS:
            self._generated(record, model)

    def settled(self, call: Call, used: Usage) -> None:
        """Once for each call that cost something, whether its client was there to its end or not."""
        model, tenant = self._models.of(call.model), self._tenants.of(call.tenant.name)
        prompt, completion, tenants_prompt, tenants_completion = self._tokens[model, tenant]
        prompt.value += used.prompt_tokens
        completion.value += used.completion_tokens
        tenants_prompt.value += used.prompt_tokens
        tenants_completion.value += used.completion_tokens
        if used.cached_tokens:
            self._cached_tokens.add((model,), used.cached_tokens)

    def _numbers_of(self, kind: Kind) -> tuple[Number, ...]:
        model, tenant, outcome, reason = kind
        found = [self._outcomes.of((model, outcome)), self._tenant_requests.of((tenant, outcome))]
        if reason is not None:
            found.append(self._routed.of((self._policy, reason)))
        return tuple(found)

    def _tokens_of(self, whose: tuple[str, str]) -> tuple[Number, ...]:
        model, tenant = whose
        return (
            *(self._prompt_tokens.of((model,)), self._generated_tokens.of((model,))),
            *(self._tenant_tokens.of((tenant, "prompt")), self._tenant_tokens.of((tenant, "completion"))),
        )

    def metrics(self) -> Iterator[Metric]:
        for tally in self._tallies:
            yield tally.metric()

    def _generated(self, record: Record, model: str) -> None:
        trace = record.trace
        trace_id = trace.trace_id if trace is not None and trace.sampled else ""
        until_first = record.first_byte - record.began
        self._first_byte.add(until_first, trace_id)
        self._last_byte.add(record.ended - record.began, trace_id)
        tokens = record.usage.completion_tokens if record.usage is not None else 0
        if record.usage is not None:
            self._answer_tokens.add(tokens)
        if record.stream and not record.replayed:
            self._ttft.of((model,)).add(until_first, trace_id)
            if tokens > 1 and record.outcome is not Outcome.CLIENT_GONE:
                self._tpot.of((model,)).add((record.ended - record.first_byte) / (tokens - 1), trace_id)

    def _own_time(self, record: Record) -> None:
        """The relay of streams is missing, as it goes on while engines work; `gllm_event_delay_seconds` is about it."""
        self._intake.add(record.parsed - record.received)
        phases = phases_of(record)
        if phases is None:
            return
        self._limits.add(phases.limits)
        self._route.add(phases.route)
        if phases.relay is not None:
            self._relay.add(phases.relay)
        self._own.add(phases.total)

    def _tried_again(self, record: Record) -> None:
        for attempt in record.tries:
            if attempt.beside:
                self._hedges.add(("won" if _won(attempt, record) else "lost",))

    def _knows(self, model: str) -> bool:
        return self.known_models is None or model in self.known_models()

    def _forget(self, model: str) -> None:
        for outcome in Outcome:
            self._outcomes.forget((model, outcome.value))
        for spread in self._of_models:
            spread.forget((model,))
        for count in self._tokens_of_models:
            count.forget((model,))
        self._numbers.clear()
        self._tokens.clear()


def _won(attempt: Attempt, record: Record) -> bool:
    return not attempt.outrun and attempt.replica == record.replica
