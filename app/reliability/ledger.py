"""Who used how much of which model on which day: what was added since it was last written down."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Self

import msgspec

from app.generation import Usage

Key = tuple[date, str, str]
"""Day (UTC), tenant, model."""

OTHER = "other"
"""Where what comes beyond the bound is counted."""

MOST_TOKENS = 10**12
"""Of one call. An engine that claims more is not believed, lest a day's sum outgrow what a database can hold."""

LONGEST_DAYS = 400


class Amounts(msgspec.Struct):
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def add(self, other: "Amounts") -> None:
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens


Book = dict[Key, Amounts]


class Ledger:
    """What is taken out belongs to the taker; nothing is counted twice, and nothing is forgotten."""

    def __init__(self, today: Callable[[], date], most: int = 10_000) -> None:
        self.today = today
        self.book: Book = {}
        self._most = most

    def __len__(self) -> int:
        return len(self.book)

    def add(self, tenant: str, model: str, usage: Usage) -> None:
        amounts = self._of((self.today(), tenant, model))
        amounts.requests += 1
        if usage.tokens + usage.cached_tokens > MOST_TOKENS:
            usage = _believed(usage)
        amounts.prompt_tokens += usage.prompt_tokens
        amounts.completion_tokens += usage.completion_tokens
        amounts.cached_tokens += usage.cached_tokens

    def merge(self, book: Book) -> None:
        for key, amounts in book.items():
            self._of(key).add(amounts)

    def take(self) -> Book:
        book, self.book = self.book, {}
        return book

    def _of(self, key: Key) -> Amounts:
        amounts = self.book.get(key)
        if amounts is None:
            if len(self.book) >= self._most:
                key = (key[0], OTHER, OTHER)
            amounts = self.book.setdefault(key, Amounts())
        return amounts


class BadPeriod(ValueError):
    """The text is a sentence, `param` the end that is wrong."""

    def __init__(self, param: str, text: str) -> None:
        super().__init__(text)
        self.param = param


@dataclass(frozen=True)
class Selection:
    """Days from `first` to `last`, both included; of one tenant, of one model, or of all."""

    first: date
    last: date
    tenant: str | None = None
    model: str | None = None

    @classmethod
    def of(
        cls, first: str | None, last: str | None, today: date, tenant: str | None = None, model: str | None = None
    ) -> Self:
        """From what people write. Raises `BadPeriod`."""
        until = _day("to", last) if last is not None else today
        since = _day("from", first) if first is not None else until - timedelta(days=min(29, until.toordinal() - 1))
        if since > until:
            raise BadPeriod("from", f"The period ends ({until}) before it begins ({since}).")
        if (until - since).days >= LONGEST_DAYS:
            raise BadPeriod("from", f"The period is longer than {LONGEST_DAYS} days.")
        return cls(since, until, tenant, model)

    @property
    def days(self) -> list[date]:
        return [self.first + timedelta(days=number) for number in range((self.last - self.first).days + 1)]

    def takes(self, key: Key) -> bool:
        day, tenant, model = key
        return self.first <= day <= self.last and self.tenant in (None, tenant) and self.model in (None, model)


def _believed(usage: Usage) -> Usage:
    return Usage(*(min(tokens, MOST_TOKENS) for tokens in msgspec.structs.astuple(usage)))


def merge(book: Book, more: Book) -> None:
    for key, amounts in more.items():
        book.setdefault(key, Amounts()).add(amounts)


def total(book: Book) -> Amounts:
    amounts = Amounts()
    for each in book.values():
        amounts.add(each)
    return amounts


def _day(param: str, text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:  # there are other ISO forms, which only machines write
        raise BadPeriod(param, f"'{param}' must be a day such as 2026-01-31.")
    return day
