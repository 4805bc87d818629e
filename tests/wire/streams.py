"""Event streams of every make, and every way to tear them."""

from hypothesis import strategies as st

ENDS = st.sampled_from([b"\n", b"\r\n"])
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12
).map(str.encode)  # fmt: skip


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """One event: comments, fields, one or several data lines, ended as one server or another ends its lines."""
    lines = draw(
        st.lists(
            st.one_of(
                TEXT.map(lambda text: b"data: " + text),
                TEXT.map(lambda text: b"data:" + text),
                TEXT.map(lambda text: b": " + text),
                TEXT.map(lambda text: b"event: " + text),
            ),
            min_size=1,
            max_size=4,
        )
    )
    return b"".join(line + draw(ENDS) for line in lines) + draw(ENDS)


def streams() -> st.SearchStrategy[list[bytes]]:
    return st.lists(events(), max_size=8)


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in pieces, torn anywhere."""
    borders = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in zip([0, *borders], [*borders, len(data)], strict=True)]
