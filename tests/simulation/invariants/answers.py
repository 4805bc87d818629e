"""What clients read."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from app.engines.scripted import Work
from app.errors import Outcome
from app.generation import Usage
from app.telemetry.base import StreamTakenOver
from tests.simulation.engines import goes_on_with
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
    """Whole if the answer is, or as much as was asked for; else from its beginning as far as it came. Never mixed,
    never doubled. An engine that goes on with what another one made has that text before its own."""
    works = history.works_by_answer()
    for seen in history.all_seen:
        if seen.status != 200 or not seen.blocks or seen.visit.seen_events:
            continue
        whole = seen.is_done if seen.is_stream else seen.ended is not None
        whole = whole and len(seen.text.split()) < seen.visit.tokens + seen.visit.spare_tokens
        made = _made(work for _, work in works[seen.visit.id])
        if not any(text == seen.text if whole else text.startswith(seen.text) for text in made):
            yield f"{seen.visit.id} read {seen.text!r}, and the engines had made {made}"


def _made(works: Iterable[Work]) -> list[str]:
    """The texts that a client may have been told."""
    made: list[str] = []
    for work in works:
        before = goes_on_with(work.call) or ""
        if not before or any(text.startswith(before) for text in made):
            made.append(before + work.text)
    return made


@invariant
def a_stream_that_is_taken_over_is_seamless(history: History) -> Iterator[str]:
    """One answer: one head, one who speaks, each token in its place, one end, and all of it counted once."""
    works = history.works_by_request()
    for seen, record in with_records(history):
        visit = seen.visit
        if not record.taken_over or visit.seen_events or not seen.blocks:
            continue
        chunks = [event for event in seen.events if isinstance(event, dict) and "error" not in event]
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        if len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) > 1:
            yield f"{visit.id} was told of several answers"
        if any("role" in choice["delta"] for choice in choices[1:]):
            yield f"{visit.id} was told again who speaks"
        if any(choice["finish_reason"] for choice in choices[:-1]):
            yield f"{visit.id} was told of an end before the last of it"
        places = [int(word.rpartition(".")[2]) for word in seen.text.split()]
        if places != [index % visit.tokens for index in range(len(places))]:
            yield f"{visit.id} read the tokens {places}"
        tried = works[visit.id]
        usage = Usage(1 + visit.prompt_chars // 4, len(places))
        truthful = all(work.script.lies is None and work.script.tells_usage for _, work in tried)
        if not (truthful and seen.is_done):
            continue
        if visit.idempotency_key is None and record.usage != usage:
            yield f"{visit.id} read {usage}, and {record.usage} is recorded"
        shown = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]
        if shown != [len(places)] * visit.shows_usage:
            yield f"{visit.id} read {len(places)} tokens, and was told of {shown}"


@invariant
def who_takes_a_stream_over_is_told(history: History) -> Iterator[str]:
    works = history.works_by_request()
    told: dict[str, list[StreamTakenOver]] = defaultdict(list)
    for _, _, event in history.events:
        if isinstance(event, StreamTakenOver):
            told[event.request_id].append(event)
    for seen, record in with_records(history):
        if seen.visit.idempotency_key is None:
            names = [name for name, _ in works[seen.visit.id]]
            if len(told[record.id]) != record.taken_over:
                yield f"{record.id} was taken over {record.taken_over} times, and that was told: {told[record.id]}"
            for event in told[record.id]:
                if not (event.from_replica in names and event.to_replica in names[1:]):
                    yield f"{record.id} was with {names}, and this was told: {event}"


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
            if not all(0 <= count <= 2_000_000_000 for count in counts):
                yield f"{record.id}: {record.usage} cannot be true, and is recorded"
        if record.replayed:
            if record.usage is not None:
                yield f"{record.id} had the answer of another, and {record.usage} is recorded for it"
            continue
        for work in [work for name, work in works[seen.visit.id] if name == record.replica][-1:]:
            if goes_on_with(work.call):
                continue  # what comes after a text is counted with the text
            if (
                record.outcome is Outcome.OK
                and work.script.lies is None
                and record.usage != work.told
                and not (work.told is None and record.guessed)
            ):
                yield f"{record.id}: the engine told {work.told}, and {record.usage} is recorded"
