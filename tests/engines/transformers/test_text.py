"""The text of a stream does not depend on how it was cut into tokens, and what is released is never taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engines.transformers.text import ByteDetokenizer, StopMatcher, WindowDetokenizer

BYTES = [bytes([value]) for value in range(256)]

few_letters = st.text(alphabet="abé", max_size=60)
stop_lists = st.lists(st.text(alphabet="abé", min_size=1, max_size=5), min_size=1, max_size=4)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    """`text` in pieces, cut anywhere."""
    borders = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in zip([0, *borders], [*borders, len(text)], strict=True)]


def run(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, include=include)
    out = ""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.matched is not None:
            return out, matcher.matched
    return out + matcher.finish(), None


def first_stop(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """The plain way to say it: the stop that ends first, the longer one if two end together."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return None
    end, _, stop = min(found)
    return end - len(stop), end, stop


@given(st.binary(max_size=200))
def test_bytes_become_the_text_that_all_of_them_together_are(data: bytes) -> None:
    detokenizer = ByteDetokenizer(BYTES)
    text = "".join(map(detokenizer.push, data)) + detokenizer.finish()
    assert text == data.decode(errors="replace")


@given(st.text(max_size=100))
def test_no_character_is_released_before_it_is_whole(text: str) -> None:
    detokenizer = ByteDetokenizer(BYTES)
    for released in map(detokenizer.push, text.encode()):
        assert "�" not in released or "�" in text


def test_bytes_that_never_become_a_character_come_out_at_the_end() -> None:
    detokenizer = ByteDetokenizer(BYTES)
    assert [detokenizer.push(byte) for byte in "é".encode()[:1]] == [""]
    assert detokenizer.finish() == "�"


@given(st.lists(st.integers(0, 255), max_size=60))
def test_a_vocabulary_with_context_is_decoded_to_the_same_text(data: list[int]) -> None:
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    valid = [byte for byte in data if byte < 128]
    detokenizer = WindowDetokenizer(decode)
    assert "".join(map(detokenizer.push, valid)) + detokenizer.finish() == decode(valid)


@given(st.text(max_size=40))
def test_a_window_never_shows_half_a_character(text: str) -> None:
    detokenizer = WindowDetokenizer(lambda ids: bytes(ids).decode(errors="replace"))
    shown = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(shown) + detokenizer.finish() == text


def test_a_window_does_not_wait_for_ever_for_a_character() -> None:
    detokenizer = WindowDetokenizer(lambda ids: bytes(ids).decode(errors="replace"))
    shown = [detokenizer.push(0x80) for _ in range(100)]
    assert len("".join(shown)) > 80


@given(st.data(), few_letters, stop_lists, st.booleans())
def test_a_stop_string_ends_the_text_at_the_same_place_however_it_is_cut(
    data: st.DataObject, text: str, stops: list[str], include: bool
) -> None:
    out, matched = run(stops, data.draw(cut(text)), include=include)
    expected = first_stop(text, stops)
    if expected is None:
        assert (out, matched) == (text, None)
    else:
        start, end, stop = expected
        assert (out, matched) == (text[: end if include else start], stop)


@given(st.data(), few_letters, stop_lists)
def test_nothing_is_released_that_could_still_become_a_stop_string(
    data: st.DataObject, text: str, stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    released = ""
    for piece in data.draw(cut(text)):
        released += matcher.push(piece)
        if matcher.matched is not None:
            break
    assert text.startswith(released)
    assert not any(stop in released for stop in stops)


@given(few_letters, stop_lists)
def test_no_more_is_held_back_than_the_longest_stop_string_could_need(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    released = "".join(matcher.push(character) for character in text if matcher.matched is None)
    if matcher.matched is None:
        held = text[len(released) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "text", "shown", "matched"),
    [
        (["END"], "the END.", "the ", "END"),
        (["\n\n"], "a\n\nb", "a", "\n\n"),
        (["aab"], "aaaab", "aa", "aab"),
        (["bc", "abc"], "xabc", "x", "abc"),
        (["é"], "café", "caf", "é"),
        (["never"], "nevev", "nevev", None),
    ],
)
def test_stop_strings_by_example(stops: list[str], text: str, shown: str, matched: str | None) -> None:
    assert run(stops, list(text)) == (shown, matched)
