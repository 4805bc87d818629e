"""What all gateways used, in Redis.

A gateway tells its own totals of a day, not what was added to them: telling them twice changes nothing, a total that
was lost is mended by the next one, and nobody has to know whether a call that failed had its effect (docs/adr/0012).
Redis counts what it was told, so that one which has forgotten the latest, or everything, shows it (docs/adr/0027).
"""

from collections.abc import Iterator
from datetime import date

import msgspec

from app.reliability.ledger import LONGEST_DAYS, Amounts, Book, Key, Selection, merge
from app.reliability.stores.redis import PREFIX, Script, SharedStore

KEPT_S = LONGEST_DAYS * 86_400
DAYS_AT_ONCE = 31
READ_LIMIT_S = 2.0
"""For a person who asks, not for a request that waits."""

_TELL = Script(
    """
    local number = tonumber(redis.call('GET', KEYS[1]) or 0)
    if number >= tonumber(ARGV[1]) and #ARGV > 2 then
        number = number + 1
    end
    redis.call('SET', KEYS[1], number)
    for i = 3, #ARGV, 3 do
        local day, field, told = KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2]
        local known = redis.call('HGET', day, field)
        if not known or tonumber(known:match('^%d+')) < tonumber(told:match('^%d+')) then
            redis.call('HSET', day, field, told)
        end
    end
    for i = 1, #KEYS do
        redis.call('EXPIRE', KEYS[i], ARGV[2])
    end
    return number
    """
)
"""A total replaces a smaller one only, so that two that overtake each other end as the larger.

KEYS: this gateway's number, days. ARGV: the number that it knows, seconds to keep all this; then of each total its day
among the keys, its field and its value. A number that was lost is not counted on before its gateway has learned that:
the answer may be lost, too.
"""


class RedisLedger:
    def __init__(self, store: SharedStore) -> None:
        self._store = store

    async def tell(self, gateway: str, totals: Book, known: int = 0) -> int:
        """How often Redis was told something by this gateway. Less than was `known`: it has forgotten since, and wants
        to be told everything again. Raises `StoreUnavailable`."""
        keys = [f"{PREFIX}{{ledger}}:told:{gateway}"]
        numbers: dict[date, int] = {}
        told: list[str | int] = []
        for (day, tenant, model), amounts in totals.items():
            if day not in numbers:
                keys.append(_key(day))
                numbers[day] = len(keys)
            told += (numbers[day], _field(tenant, model, gateway), _value(amounts))
        return int(await self._store.run(_TELL, keys, [known, KEPT_S, *told]))

    async def select(self, selection: Selection) -> Book:
        """The sum over all gateways. Raises `StoreUnavailable`."""
        book: Book = {}
        days = selection.days
        for start in range(0, len(days), DAYS_AT_ONCE):
            some = days[start : start + DAYS_AT_ONCE]
            asked = [("HGETALL", _key(day)) for day in some]
            for day, fields in zip(some, await self._store.pipeline(asked, READ_LIMIT_S), strict=True):
                for key, amounts in _read(day, fields):
                    if selection.takes(key):
                        merge(book, {key: amounts})
        return book


def _key(day: date) -> str:
    return f"{PREFIX}{{ledger}}:{day.isoformat()}"


def _field(tenant: str, model: str, gateway: str) -> str:
    return msgspec.json.encode((tenant, model, gateway)).decode()


def _value(amounts: Amounts) -> str:
    return " ".join(map(str, msgspec.structs.astuple(amounts)))


def _read(day: date, flat: list[bytes]) -> Iterator[tuple[Key, Amounts]]:
    for field, value in zip(flat[::2], flat[1::2], strict=True):
        tenant, model, _ = msgspec.json.decode(field, type=tuple[str, str, str])
        yield (day, tenant, model), Amounts(*map(int, value.split()))
