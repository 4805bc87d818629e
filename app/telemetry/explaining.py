"""From a call's record and story to its explanation, when somebody asks."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from app.clock import Clock
from app.generation import Usage
from app.telemetry.explanation import (
    Counted,
    Explanation,
    Limit,
    Option,
    Spent,
    Stay,
    Summary,
    Tokens,
    Tried,
    Wish,
)
from app.telemetry.phases import between_s, engine_s, phases_of
from app.telemetry.record import Attempt, Record
from app.telemetry.story import Asked, Candidate, Stood, Story
from app.telemetry.words import PRIORITIES
from app.tenant import Kind, Priority

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]]{0,63}")

MOST_SHOWN = 16
"""Replicas of one choice."""


@dataclass(frozen=True)
class Explanations:
    gateway: str
    policy: str
    clock: Clock
    unix_now: Clock

    def summary(self, record: Record, *, waits: bool) -> Summary:
        made, usage, ended = record.made or record, (record.made or record).usage, record.ended > 0
        return Summary(
            id=record.id,
            came=datetime.fromtimestamp(self.unix_now() - self.clock() + record.began, UTC),
            state="ended" if ended else "waiting" if waits else "running",
            endpoint=record.endpoint,
            model=record.model,
            tenant=record.tenant,
            priority=PRIORITIES[record.priority] if record.priority is not None else None,
            stream=record.stream,
            status=record.status or None,
            outcome=record.outcome if ended else None,
            code=record.code,
            duration_ms=_ms(self._until(record) - record.began),
            queue_ms=_ms(made.queued_s),
            first_byte_ms=_ms(record.first_byte - record.began) if record.first_byte else None,
            replica=record.replica or made.replica,
            attempts=record.attempts or made.attempts,
            prompt_tokens=usage.prompt_tokens if usage is not None else None,
            completion_tokens=usage.completion_tokens if usage is not None else None,
        )

    def explanation(self, record: Record, place: tuple[int, int] | None) -> Explanation:
        now, made, story = self._until(record), record.made or record, record.story or Story()
        refusal, since, asked = story.refusal, record.began, story.asked
        return Explanation(
            **msgspec.structs.asdict(self.summary(record, waits=place is not None)),
            gateway=self.gateway,
            method=record.method,
            policy=self.policy,
            trace_id=record.trace.trace_id if record.trace is not None else "",
            asked=None if asked is None else _asked(asked, record),
            place=place[0] if place is not None else None,
            places=place[1] if place is not None else None,
            idempotency=record.keyed,
            answered_by=record.answered_by,
            spent=self._spent(record, made, now),
            tokens=_tokens(story, made.usage, over=record.ended > 0),
            limits=_limits(story),
            line=[_stay(stood, since, stood.until or (stood.since if record.ended else now)) for stood in story.stood],
            tried=[_tried(number, made, since, now) for number in range(len(made.tries))],
            not_retried=story.not_retried,
            taken_over=made.taken_over,
            events=made.events,
            usage=_counted(made),
            error=record.error,
            message=refusal.message if refusal else "",
            param=_param(refusal.param) if refusal and refusal.param else "",
            retry_after_s=refusal.retry_after_s if refusal else None,
            should_retry=refusal.should_retry if refusal else None,
        )

    def _until(self, record: Record) -> float:
        return record.ended or self.clock()

    def _spent(self, record: Record, made: Record, now: float) -> Spent:
        whole = msgspec.structs.replace(made, ended=now, first_byte=record.first_byte)
        phases = phases_of(whole)
        return Spent(
            intake=_ms(record.parsed - record.received) if record.parsed else None,
            limits=_ms(made.allowed - made.parsed) if made.allowed else None,
            queue=_ms(made.queued_s),
            route=_ms(phases.route) if phases else None,
            engine=_ms(engine_s(whole)) if made.tries else None,
            between=_ms(between_s(whole)) if len(made.tries) > 1 else None,
            stream=_ms(now - record.first_byte) if record.stream and record.first_byte else None,
            overhead=_ms(phases.total) if phases else None,
        )


def _param(name: str) -> str:
    """A field that nobody knows may be anything that a client has made up, a whole prompt too."""
    return name if _NAME.fullmatch(name) else "(a field of no usual name)"


def _asked(asked: Asked, record: Record) -> Wish:
    return Wish(
        allowed_ms=_ms(asked.expires_at - record.began),
        body_bytes=asked.body_bytes,
        max_tokens=record.max_tokens,
        choices=record.choices,
        session=asked.session,
        keyed=asked.keyed,
    )


def _tokens(story: Story, usage: Usage | None, *, over: bool) -> Tokens | None:
    if story.expected is None:
        return None
    reserved = story.expected.tokens if story.limits else 0
    used = (usage.tokens if usage else 0) if over else None
    given_back = reserved - used if used is not None and reserved else None
    return Tokens(
        prompt=story.expected.prompt_tokens,
        output=story.expected.output_tokens,
        let_in=story.limits is not None,
        reserved=reserved,
        used=used,
        given_back=given_back,
    )


def _limits(story: Story) -> list[Limit]:
    standing = story.refusal.limits if story.refusal is not None and story.refusal.limits else story.limits or ()
    tokens = story.expected.tokens if story.expected is not None else 0
    return [
        Limit(
            kind=each.kind,
            of_model=each.of_model,
            limit=each.limit,
            needed=tokens if each.kind is Kind.TOKENS else 1,
            left=each.remaining,
            whole_in_s=round(each.reset_s, 3),
            allows_in_s=None if each.wait_s is None else round(each.wait_s, 3),
        )
        for each in standing
    ]


def _stay(stood: Stood, since: float, until: float) -> Stay:
    return Stay(
        came_ms=_ms(stood.since - since),
        waited_ms=_ms(until - stood.since),
        ahead=stood.ahead,
        waiting=stood.waiting,
        expected_ms=_ms(stood.wait_s),
        needed_ms=_ms(stood.needs_s),
        left_ms=_ms(stood.left_s),
        again=stood.again,
        tenants=stood.tenants,
        promoted=stood.promoted,
        displaced_by=stood.displaced_by,
    )


def _tried(number: int, made: Record, since: float, now: float) -> Tried:
    attempt = made.tries[number]
    seen, able, absent = attempt.options or ([], 0, ())
    candidates = [Candidate(*each) for each in seen]
    before = {each.replica for each in made.tries[:number]}
    known = {each.replica for each in candidates}
    options = [_option(each, attempt, made, before) for each in candidates]
    options += [_absent(name, standing) for name, standing in absent if name not in known]
    return Tried(
        replica=attempt.replica,
        began_ms=_ms(attempt.began - since),
        took_ms=_ms((attempt.ended or now) - attempt.began),
        running=not attempt.ended,
        reason=attempt.reason,
        beside=attempt.beside,
        outrun=attempt.outrun,
        error=attempt.error,
        free=attempt.among,
        of=max(able + len(absent), len(options)),
        candidates=options[:MOST_SHOWN],
    )


def _option(candidate: Candidate, attempt: Attempt, made: Record, before: set[str]) -> Option:
    tokens = candidate.load + candidate.beside
    return Option(
        replica=candidate.replica,
        running=candidate.running,
        slots=candidate.slots,
        tokens=tokens,
        score=round(tokens / max(1, candidate.slots), 2),
        against="" if candidate.replica == attempt.replica else _against(candidate, made, before),
    )


def _against(candidate: Candidate, made: Record, before: set[str]) -> str:
    if candidate.replica in before:
        return "tried already"
    if candidate.circuit != "closed":
        return f"circuit {candidate.circuit}".replace("_", " ")
    if candidate.running >= candidate.slots:
        return "full"
    kept = made.priority is not Priority.INTERACTIVE and candidate.running >= candidate.slots - candidate.reserved
    return "kept for interactive calls" if kept else ""


def _absent(name: str, standing: str) -> Option:
    return Option(replica=name, running=None, slots=None, tokens=None, score=None, against=standing)


def _counted(made: Record) -> Counted | None:
    if made.usage is None:
        return None
    return Counted(
        prompt_tokens=made.usage.prompt_tokens,
        completion_tokens=made.usage.completion_tokens,
        cached_tokens=made.usage.cached_tokens,
        guessed=made.guessed,
    )


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e3, 2)
