import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reliability.fingerprint import fingerprint

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # no lone surrogates: those are no JSON in UTF-8
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(st.text("xyz", min_size=1, max_size=3), values, max_size=5)


def shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(name, shuffled(inner, chance)) for name, inner in value.items()]
        chance.shuffle(items)
        return dict(items)
    return [shuffled(inner, chance) for inner in value] if isinstance(value, list) else value


@given(bodies, st.randoms(use_true_random=False), st.sampled_from([None, 1, 4]), st.booleans())
def test_order_and_white_space_do_not_matter(
    body: dict[str, Any], chance: random.Random, indent: int | None, as_ascii: bool
) -> None:
    written = json.dumps(shuffled(body, chance), indent=indent, ensure_ascii=as_ascii)
    assert fingerprint(written.encode()) == fingerprint(json.dumps(body).encode())


@given(bodies, bodies)
def test_values_do(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(json.dumps(one).encode()) == fingerprint(json.dumps(other).encode())) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [(b'{"a":1}', b'{"a":"1"}'), (b'{"a":[1,2]}', b'{"a":[2,1]}'), (b'{"a":null}', b"{}"), (b'{"a":1}', b'{"a":true}')],
)
def test_kinds_orders_of_lists_and_nulls_matter(one: bytes, other: bytes) -> None:
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    "body",
    [b'{"a":1e999}', b'{"a":"\\ud800"}', b"[" * 100_000, b'{"a":%b}' % (b"9" * 5_000)],
    ids=lambda body: body[:9],
)
def test_what_no_value_of_ours_can_hold_goes_by_its_bytes(body: bytes) -> None:
    assert fingerprint(body) == fingerprint(body)
    assert fingerprint(body) != fingerprint(body + b" ") or body.endswith(b"}")
