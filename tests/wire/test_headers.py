import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.wire.headers import idempotency_key, last_event_id, session_id

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-"


@given(st.text(ALPHABET, min_size=1, max_size=255), st.booleans())
def test_a_key_is_the_same_bare_and_quoted(key: str, quoted: bool) -> None:
    assert idempotency_key((f'"{key}"' if quoted else key).encode()) == key


@given(st.binary(max_size=300))
def test_anything_else_is_refused_by_name(raw: bytes) -> None:
    bare = raw[1:-1] if len(raw) > 1 and raw[:1] == raw[-1:] == b'"' else raw
    if 1 <= len(bare) <= 255 and set(bare) <= set(ALPHABET.encode()):
        assert idempotency_key(raw) == bare.decode()
        return
    with pytest.raises(InvalidRequest) as raised:
        idempotency_key(raw)
    assert (raised.value.param, raised.value.code) == ("Idempotency-Key", "invalid_idempotency_key")


@given(st.integers(0, 10**9 - 1))
def test_an_event_is_known_by_its_number(number: int) -> None:
    assert last_event_id(b"%d" % number) == number


@pytest.mark.parametrize("raw", [b"", b"-1", b"+1", b"1.0", b"0x1", b" 1", b"1" * 10, "٣".encode()], ids=repr)
def test_what_is_no_number_of_an_event_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as raised:
        last_event_id(raw)
    assert raised.value.param == "Last-Event-ID"


@given(st.binary(max_size=300))
def test_a_session_id_is_one_plain_word_and_anything_else_is_refused_by_name(raw: bytes) -> None:
    if 1 <= len(raw) <= 255 and set(raw) <= set(ALPHABET.encode()):
        assert session_id(raw) == raw.decode()
        return
    with pytest.raises(InvalidRequest) as raised:
        session_id(raw)
    assert (raised.value.param, raised.value.code) == ("X-Session-Id", "invalid_header")


@given(st.text(ALPHABET, min_size=1, max_size=255))
def test_any_plain_word_is_a_session_id(name: str) -> None:
    assert session_id(name.encode()) == name
