"""What clients read."""

import re
from collections.abc import Iterator

from app.errors import Outcome
from tests.simulation.history import History
from tests.simulation.invariants.base import invariant, streams, with_records

WHOLE_EVENTS = re.compile(rb"(?:(?:id: \d+\n)?data: [^\n]*\n\n)+")


@invariant
def an_answer_begins_once_and_nothing_follows_its_end(history: History) -> Iterator[str]:
    for seen in history.all_seen:
        if seen.out_of_turn:
            yield f"{seen.visit.id} was sent {', '.join(seen.out_of_turn)} out of turn"


@invariant
def a_stream_ends_with_done_or_with_an_error_and_nothing_follows(history: History) -> Iterator[str]:
    for seen in streams(history):
        last = [event == "[DONE]" or "error" in event for event in seen.events]
        if any(last[:-1]):
            yield f"{seen.visit.id}: the stream goes on after its end"
        if seen.ended is not None and not any(last):
            yield f"{seen.visit.id}: the stream ends with neither [DONE] nor an error"


@invariant
def blocks_are_whole_events(history: History) -> Iterator[str]:
    for seen in streams(history):
        for _, block in seen.blocks:
            if not WHOLE_EVENTS.fullmatch(block):
                yield f"{seen.visit.id} was sent a torn event: {block!r}"


@invariant
def a_text_is_what_one_engine_made(history: History) -> Iterator[str]:
    """Whole if the answer is; else from its beginning as far as it came. Never mixed, never doubled."""
    works = history.works_by_answer()
    for seen in history.all_seen:
        if seen.status != 200 or not seen.blocks or seen.visit.seen_events:
            continue
        whole = seen.is_done if seen.is_stream else seen.ended is not None
        made = [work.text for _, work in works[seen.visit.id]]
        if not any(text == seen.text if whole else text.startswith(seen.text) for text in made):
            yield f"{seen.visit.id} read {seen.text!r}, and the engines had made {made}"


@invariant
def usage_is_shown_to_those_who_asked(history: History) -> Iterator[str]:
    for seen in streams(history):
        if not seen.visit.shows_usage and b'"usage"' in seen.body:
            yield f"{seen.visit.id} did not ask for its usage and was sent it"


@invariant
def what_is_recorded_as_used_is_what_the_engine_told(history: History) -> Iterator[str]:
    works = history.works_by_request()
    for seen, record in with_records(history):
        if record.usage is not None:
            counts = (record.usage.prompt_tokens, record.usage.completion_tokens, record.usage.cached_tokens)
            if not all(0 <= count <= 2**53 for count in counts):
                yield f"{record.id}: {record.usage} cannot be true, and is recorded"
        if record.replayed:
            if record.usage is not None:
                yield f"{record.id} had the answer of another, and {record.usage} is recorded for it"
            continue
        for work in [work for name, work in works[seen.visit.id] if name == record.replica][-1:]:
            if (
                record.outcome is Outcome.OK
                and work.script.lies is None
                and record.usage != work.told
                and not (work.told is None and record.guessed)
            ):
                yield f"{record.id}: the engine told {work.told}, and {record.usage} is recorded"
