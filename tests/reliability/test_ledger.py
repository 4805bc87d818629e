from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.generation import Usage
from app.reliability.ledger import LONGEST_DAYS, MOST_TOKENS, OTHER, Amounts, BadPeriod, Book, Ledger, Selection, total

TODAY = date(2026, 3, 1)

usages = st.builds(Usage, *[st.integers(0, 10**6)] * 3)
calls = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), usages))


def ledger(most: int = 100) -> Ledger:
    return Ledger(lambda: TODAY, most)


def test_what_a_tenant_used_of_a_model_is_one_sum() -> None:
    book = ledger()
    book.add("acme", "demo", Usage(10, 5, 2))
    book.add("acme", "demo", Usage(1, 1))
    book.add("acme", "large", Usage(7, 3))
    assert book.take() == {
        (TODAY, "acme", "demo"): Amounts(2, 11, 6, 2),
        (TODAY, "acme", "large"): Amounts(1, 7, 3),
    }


def test_what_was_taken_is_not_there_any_more() -> None:
    book = ledger()
    book.add("acme", "demo", Usage(1, 1))
    assert len(book.take()) == 1
    assert book.take() == {}


def test_a_call_belongs_to_the_day_it_was_counted_on() -> None:
    days = iter((TODAY, TODAY + timedelta(days=1)))
    book = Ledger(lambda: next(days))
    book.add("acme", "demo", Usage(1, 1))
    book.add("acme", "demo", Usage(2, 2))
    assert {day: amounts.prompt_tokens for (day, _, _), amounts in book.take().items()} == {
        TODAY: 1,
        TODAY + timedelta(days=1): 2,
    }


@given(calls)
def test_nothing_is_forgotten_and_the_bound_holds(made: list[tuple[str, str, Usage]]) -> None:
    book = ledger(most=5)
    for tenant, model, usage in made:
        book.add(tenant, model, usage)
    assert len(book) <= 5 + 1
    whole = total(book.book)
    assert whole.requests == len(made)
    assert whole.prompt_tokens == sum(usage.prompt_tokens for *_, usage in made)
    assert whole.completion_tokens == sum(usage.completion_tokens for *_, usage in made)
    assert whole.cached_tokens == sum(usage.cached_tokens for *_, usage in made)


def test_beyond_the_bound_it_is_counted_under_other() -> None:
    book = ledger(most=1)
    book.add("acme", "demo", Usage(1, 1))
    book.add("new", "demo", Usage(2, 2))
    book.add("acme", "demo", Usage(1, 1))
    assert set(book.take()) == {(TODAY, "acme", "demo"), (TODAY, OTHER, OTHER)}


@given(calls, calls)
def test_merging_is_adding(made: list[tuple[str, str, Usage]], more: list[tuple[str, str, Usage]]) -> None:
    parts, whole = (ledger(), ledger()), ledger()
    for part, some in zip(parts, (made, more), strict=True):
        for call in some:
            part.add(*call)
            whole.add(*call)
    parts[0].merge(parts[1].take())
    assert parts[0].take() == whole.take()


def test_an_engine_that_claims_the_impossible_does_not_spoil_the_sums() -> None:
    book = ledger()
    book.add("acme", "demo", Usage(2**53, 2**53, 2**53))
    assert total(book.take()) == Amounts(1, MOST_TOKENS, MOST_TOKENS, MOST_TOKENS)


# --- which days -------------------------------------------------------------------------------------------------------


def test_unless_said_otherwise_it_is_the_last_thirty_days() -> None:
    selection = Selection.of(None, None, TODAY)
    assert (selection.first, selection.last, len(selection.days)) == (date(2026, 1, 31), TODAY, 30)
    assert Selection.of(None, "2026-01-30", TODAY).first == date(2026, 1, 1)
    assert Selection.of("2026-02-27", None, TODAY).days[-1] == TODAY
    assert Selection.of(None, "0001-01-05", TODAY).first == date(1, 1, 1)


@pytest.mark.parametrize(
    ("first", "last", "param"),
    [
        ("yesterday", None, "from"),
        ("2026-02-30", None, "from"),
        ("20260201", None, "from"),
        ("2026-W09-1", None, "from"),
        ("", None, "from"),
        (None, "2026-1-1", "to"),
        (None, "2026-01-01T00:00", "to"),
        ("2026-03-02", None, "from"),
        ("2026-02-02", "2026-02-01", "from"),
        ("2020-01-01", "2026-02-01", "from"),
    ],
)
def test_a_period_that_cannot_be_is_refused_by_name(first: str | None, last: str | None, param: str) -> None:
    with pytest.raises(BadPeriod) as refused:
        Selection.of(first, last, TODAY)
    assert refused.value.param == param
    assert str(refused.value).endswith(".")


def test_the_longest_period_is_allowed() -> None:
    assert len(Selection.of(str(TODAY - timedelta(days=LONGEST_DAYS - 1)), None, TODAY).days) == LONGEST_DAYS


def test_a_selection_takes_its_days_its_tenant_and_its_model() -> None:
    book: Book = {(TODAY - timedelta(days=back), t, m): Amounts(1) for back in range(5) for t in "ab" for m in "xy"}

    def taken(selection: Selection) -> int:
        return sum(selection.takes(key) for key in book)

    assert taken(Selection(TODAY - timedelta(days=2), TODAY)) == 3 * 4
    assert taken(Selection(TODAY, TODAY, tenant="a")) == 2
    assert taken(Selection(TODAY, TODAY, tenant="a", model="y")) == 1
    assert taken(Selection(TODAY, TODAY, model="z")) == 0
