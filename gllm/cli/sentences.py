"""An explanation of a request in sentences, in the order in which things happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.telemetry.words import lasting, word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.telemetry.explanation import Explanation, Limit, Option, Stay, Tried

CHOSEN_BY = {
    "only": "no other replica could take it",
    "turn": "it was its turn",
    "load": "it had less to do than the others that were looked at",
    "session": "the call's session lives there",
    "session_away": "its session's replica has too much to do, and this one is next in the session's order",
    "prefix": "it has read the beginning of this prompt lately",
    "prefix_away": "those that have read this prompt's beginning have too much to do, and this one had less",
}
KEYED = {
    "first": "the answer was made for this request",
    "replayed": "it got the answer that is kept",
    "attached": "it read along with a request that was being answered",
    "resumed": "it got the rest of a stream whose beginning its client had",
    "in_flight": "a request with this key was being answered",
    "mismatch": "the key stands for another request",
    "not_replayable": "the key's answer is not kept",
    "store_down": "the store of keys did not answer",
}
NOT_RETRIED = {
    "begun": "its client had part of the answer already, and nobody could go on with it",
    "useless": "it would have failed elsewhere too",
    "attempts": "there were as many attempts as there may be (MAX_ATTEMPTS)",
    "no_other": "no other replica could be asked",
    "budget_or_time": "the budget for retries was spent (RETRY_BUDGET), or the call's time",
}
LIMITS = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrent": "requests at once"}
CANDIDATE = ("", "replica", "running", "tokens", "score", "")
ROUNDED_MS = 0.02
"""By so much may times be off that are told to a hundredth and were added up."""
WIDTH = 10
INDENT = " " * (WIDTH + 2)


def told(call: Explanation) -> Iterator[str]:
    yield from _head(call)
    yield ""
    for at_ms, lines in sorted(_moments(call), key=lambda moment: moment[0]):
        first, *more = lines
        yield f"{lasting(at_ms / 1e3):>{WIDTH}}  {first}"
        yield from (f"{INDENT}  {line}" for line in more)
    if more := [*_refusal(call), *_settled(call), *_time(call)]:
        yield ""
        yield from more


def _head(call: Explanation) -> Iterator[str]:
    yield f"Request {call.id}: {_state(call)}"
    streamed = ", streamed" if call.stream else ""
    model = f" by {word(call.model)}" if call.model else ""
    yield f"  {word(call.method)} {word(call.endpoint)}{model}{streamed}"
    yield f"  came {call.came:%Y-%m-%d %H:%M:%S} UTC at gateway {call.gateway}{_trace(call)}"
    tenant = f"tenant {word(call.tenant)}" if call.tenant else "from nobody that is known"
    yield f"  {tenant}{f', {call.priority} priority' if call.priority else ''}{_key(call)}"
    if (asked := call.asked) is not None:
        tokens = f", at most {_many(asked.max_tokens, 'token')} wanted" if asked.max_tokens is not None else ""
        choices = f", {asked.choices} answers" if asked.choices > 1 else ""
        session = ", of a session" if asked.session else ""
        given = lasting(asked.allowed_ms / 1e3)
        yield f"  {_many(asked.body_bytes, 'byte')}{tokens}{choices}{session}; it was given {given}"


def _state(call: Explanation) -> str:
    took = lasting(call.duration_ms / 1e3)
    if call.state == "waiting":
        return f"still waiting, place {call.place} of {call.places}, {took} after it came"
    if call.state == "running":
        return f"still running, {took} after it came"
    return f"{call.outcome} ({call.status}) after {took}"


def _trace(call: Explanation) -> str:
    return f", trace {call.trace_id}" if call.trace_id else ""


def _key(call: Explanation) -> str:
    if call.asked is None:
        return ""
    if not call.asked.keyed:
        return ", without an idempotency key"
    became = f": {KEYED[call.idempotency]}" if call.idempotency is not None else ""
    whose = f" (made for {word(call.answered_by)})" if call.answered_by else ""
    return f", with an idempotency key{became}{whose}"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


# --- what happened, and when ----------------------------------------------------------------------------------------


def _moments(call: Explanation) -> Iterator[tuple[float, list[str]]]:
    yield 0.0, ["came"]
    intake = call.spent.intake or 0.0
    if call.tokens is not None:
        expected = f"expected: {call.tokens.prompt:,} tokens to read, {call.tokens.output:,} to make"
        yield intake, [expected, *(_reserved(call) if call.tokens.let_in else ())]
    for stay in call.line:
        yield stay.came_ms, [_into_line(stay)]
        if stay.waited_ms and not _waits_still(call, stay):
            yield _left_ms(call, stay), [_out_of_line(call, stay)]
    for number, tried in enumerate(call.tried, 1):
        yield tried.began_ms, [_attempt(number, tried), *_candidates(tried)]
        if not tried.running and (tried.error or tried.outrun):
            yield tried.began_ms + tried.took_ms, [_ended(tried)]
    if call.first_byte_ms is not None:
        yield call.first_byte_ms, ["first byte of the answer"]
    if call.state == "ended":
        yield call.duration_ms, [_end(call)]


def _reserved(call: Explanation) -> Iterator[str]:
    if call.tokens is not None and call.tokens.reserved:
        yield f"its tenant's limits let it in, and {call.tokens.reserved:,} tokens were reserved:"
        yield from map(_limit, call.limits)
    else:
        yield "its tenant has no limits"


def _refused_by_limit(call: Explanation) -> bool:
    return any(limit.allows_in_s is not None for limit in call.limits) or call.error == "LargerThanLimit"


def _limit(limit: Limit) -> str:
    whose = " of this model" if limit.of_model else ""
    again = f", whole again in {lasting(limit.whole_in_s)}" if limit.whole_in_s else ""
    return f"{LIMITS[limit.kind]}{whose}: {limit.left:,} left of {limit.limit:,}{again}"


def _into_line(stay: Stay) -> str:
    if stay.again:
        return f"back into the line, ahead of {stay.waiting - stay.ahead:,} that had not been served at all"
    company = f"{stay.ahead:,} ahead of it in the line, {stay.waiting:,} waiting in all"
    expected = f"; expected to wait {lasting(stay.expected_ms / 1e3)}" if stay.expected_ms else ""
    return f"no replica had room: {company}{expected}"


def _waits_still(call: Explanation, stay: Stay) -> bool:
    return call.state == "waiting" and stay is call.line[-1]


def _left_ms(call: Explanation, stay: Stay) -> float:
    """When it left the line. Of rounded times the sum may be a hair later than the attempt that followed."""
    left_ms = stay.came_ms + stay.waited_ms
    return min([left_ms, *(tried.began_ms for tried in call.tried if tried.began_ms > left_ms - ROUNDED_MS)])


def _out_of_line(call: Explanation, stay: Stay) -> str:
    waited = f"after {lasting(stay.waited_ms / 1e3)} of waiting"
    if stay.displaced_by:
        return f"out of the line {waited}: its place was given to request {word(stay.displaced_by)}"
    if not any(tried.began_ms >= _left_ms(call, stay) for tried in call.tried):
        return f"out of the line {waited}: its turn had not come"
    if stay.again:
        return f"its turn {waited}: there was room on a replica that had not failed it"
    promoted = " (as batch it had waited long enough to count as normal)" if stay.promoted else ""
    if stay.tenants > 1:
        why = f"of {stay.tenants} tenants in its class its own had been served least, by weight"
    elif stay.tenants == 1:
        why = "nobody of a higher class or another tenant was before it"
    else:
        why = "first come, first served"
    return f"its turn {waited}: there was room, and {why}{promoted}"


def _attempt(number: int, tried: Tried) -> str:
    beside = ", beside one that was slow to begin" if tried.beside else ""
    why = f": {CHOSEN_BY[tried.reason]} ({tried.reason})" if tried.reason is not None else ""
    return f"attempt {number} on {word(tried.replica)}{beside}{why}"


def _candidates(tried: Tried) -> Iterator[str]:
    from gllm.cli import table

    rows = [_candidate(each, tried) for each in tried.candidates]
    yield from (line.rstrip() for line in table.lines(CANDIDATE, rows, numbers=(2, 3, 4)))
    if (more := tried.of - len(tried.candidates)) > 0:
        yield f"and {more:,} more; {tried.free:,} of {tried.of:,} could be chosen"


def _candidate(option: Option, tried: Tried) -> tuple[str, ...]:
    return (
        "->" if option.replica == tried.replica else "",
        option.replica,
        f"{option.running}/{option.slots}" if option.running is not None else "",
        f"{option.tokens:,}" if option.tokens is not None else "",
        f"{option.score:,.2f}" if option.score is not None else "",
        option.against,
    )


def _ended(tried: Tried) -> str:
    took = lasting(tried.took_ms / 1e3)
    if tried.outrun:
        return f"{word(tried.replica)} was outrun by another attempt, after {took}"
    return f"{word(tried.replica)} failed after {took}: {word(tried.error)}"


def _end(call: Explanation) -> str:
    parts = [f"{call.outcome} ({call.status})"]
    if call.taken_over:
        parts.append("another replica went on with its stream")
    if call.events:
        parts.append(f"{_many(call.events, 'event')} from the engine")
    if call.usage is not None:
        cached = f" ({call.usage.cached_tokens:,} of them cached)" if call.usage.cached_tokens else ""
        guessed = ", by our own guess" if call.usage.guessed else ""
        parts.append(
            f"{call.usage.prompt_tokens:,} tokens read{cached}, {call.usage.completion_tokens:,} made{guessed}"
        )
    return "; ".join(parts)


# --- what came of it ------------------------------------------------------------------------------------------------


def _refusal(call: Explanation) -> Iterator[str]:
    if not call.message:
        return
    about = f" {word(call.param)}:" if call.param else ""
    yield f"Why: {word(call.code)}.{about} {call.message if call.message.isprintable() else word(call.message)}"
    yield from (f"  {line}" for line in _facts(call))
    if call.not_retried is not None:
        yield f"  It was not tried once more: {NOT_RETRIED[call.not_retried]}."
    if call.retry_after_s is not None:
        yield f"  Its client was told to come again in {lasting(max(1.0, call.retry_after_s))} (Retry-After)."
    elif call.should_retry is False:
        yield "  Its client was told that the same request again would not help (x-should-retry: false)."


def _facts(call: Explanation) -> Iterator[str]:
    if _refused_by_limit(call):
        for limit in call.limits:
            enough = f"; enough in {lasting(limit.allows_in_s)}" if limit.allows_in_s is not None else ""
            yield f"{_limit(limit)}, {limit.needed:,} needed{enough}"
    stay = call.line[-1] if call.line else None
    if stay is None:
        return
    if call.code == "queue_full":
        yield f"Waiting already: {stay.waiting:,}, and none of them with less right to a place."
    elif call.code == "displaced":
        yield f"Its place was given to request {word(stay.displaced_by)}."
    elif call.code == "would_miss_deadline" and not stay.waited_ms:
        needed, wait = lasting(stay.needed_ms / 1e3), lasting(stay.expected_ms / 1e3)
        yield f"It would have needed up to {needed} ({wait} of waiting, with {stay.ahead:,} ahead of it),"
        yield f"and had {lasting(stay.left_ms / 1e3)}: with more time, or a shorter line, it would have been let in."
    elif call.code == "would_miss_deadline":
        yield f"It waited {lasting(stay.waited_ms / 1e3)}, with {stay.ahead:,} ahead of it when it came."


def _settled(call: Explanation) -> Iterator[str]:
    tokens = call.tokens
    if tokens is None or tokens.given_back is None or tokens.used is None:
        return
    back = f"{tokens.given_back:,} given back" if tokens.given_back >= 0 else f"{-tokens.given_back:,} more taken"
    yield f"Tokens: {tokens.reserved:,} reserved, {tokens.used:,} used, {back}."


def _time(call: Explanation) -> Iterator[str]:
    spent = call.spent
    named = {
        "waiting": spent.queue or None,
        "engine": spent.engine,
        "between attempts": spent.between,
        "our own": spent.overhead,
    }
    parts = [f"{lasting(value / 1e3)} {name}" for name, value in named.items() if value is not None]
    if parts:
        limits = "key and limits" if call.idempotency is not None else "limits"
        own = {"intake": spent.intake, limits: spent.limits, "routing": spent.route}
        detail = ", ".join(f"{name} {lasting(value / 1e3)}" for name, value in own.items() if value is not None)
        yield f"Time: {', '.join(parts)} ({detail})."
