"""Each thing is found on the line on which it stands, however the file is written."""

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.tenants.statements import Place, Statement, lines_of, statements

TEXT = '''\
# A file
top = 1  # [not a header]

[[ tenant ]]
name = "a # b"
"quo.ted" . 'too' = """
[[tenant]]
x = 1 \\""" """""
list = [ # one
  "]", # two
  { a = "}" },
]

  [tenant.limits."x.y"]
  n = \'\'\'
it''s\'\'\'
[[tenant.key]]
sha256 = 'a"'
[["tenant".key]]
sha256 = "\\"\\u0062"
[[tenant]]
name = "z"
[[tenant.key]]'''


def test_each_statement_has_its_place_and_its_lines() -> None:
    tomllib.loads(TEXT)
    assert list(statements(TEXT)) == [
        Statement(("top",), 2, 2, False),
        Statement(("tenant", 0), 4, 4, True),
        Statement(("tenant", 0, "name"), 5, 5, False),
        Statement(("tenant", 0, "quo.ted", "too"), 6, 8, False),
        Statement(("tenant", 0, "list"), 9, 12, False),
        Statement(("tenant", 0, "limits", "x.y"), 14, 14, True),
        Statement(("tenant", 0, "limits", "x.y", "n"), 15, 16, False),
        Statement(("tenant", 0, "key", 0), 17, 17, True),
        Statement(("tenant", 0, "key", 0, "sha256"), 18, 18, False),
        Statement(("tenant", 0, "key", 1), 19, 19, True),
        Statement(("tenant", 0, "key", 1, "sha256"), 20, 20, False),
        Statement(("tenant", 1), 21, 21, True),
        Statement(("tenant", 1, "name"), 22, 22, False),
        Statement(("tenant", 1, "key", 0), 23, 23, True),
    ]


def test_a_thing_without_a_line_of_its_own_begins_with_what_is_first_in_it() -> None:
    assert lines_of("\n[a.b]\nc.d = 1\n") == {("a",): 2, ("a", "b"): 2, ("a", "b", "c"): 3, ("a", "b", "c", "d"): 3}


def test_windows_line_ends_count_once() -> None:
    assert [each.first for each in statements(TEXT.replace("\n", "\r\n"))] == [each.first for each in statements(TEXT)]


# --- whatever may stand in a value --------------------------------------------------------------------------------

QUOTES = st.text(st.sampled_from("ab\"'\\[]{}#=\n \u2028\x85é"), max_size=8)


def basic(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def basic_lines(text: str) -> str:
    return f'"""{basic(text)[1:-1]}"""'.replace("\\n", "\n")


SCALARS = st.one_of(
    QUOTES.map(basic),
    QUOTES.filter(lambda text: "\\n" not in text).map(basic_lines),
    QUOTES.filter(lambda text: not set(text) & set("'\n")).map(lambda text: f"'{text}'"),
    QUOTES.filter(lambda text: "'" not in text).map(lambda text: f"'''{text}'''"),
    st.sampled_from(["1", "-2.5e3", "true", "2030-01-31", "2030-01-31 01:02:03Z"]),
)
GAPS = st.sampled_from(["", " ", "\n", " # ] ' \" [x] = 1\n", "\n\n"])


@st.composite
def values(draw: st.DrawFn) -> str:
    kind = draw(st.integers(0, 3))
    if kind < 2:
        return draw(SCALARS)
    parts = draw(st.lists(SCALARS, max_size=3))
    if kind == 2:
        return "[" + "".join(f"{draw(GAPS)}{part}{draw(GAPS)}," for part in parts) + draw(GAPS) + "]"
    return "{ " + ", ".join(f"k{number} = {part}" for number, part in enumerate(parts)) + " }"


@given(st.data())
def test_whatever_stands_in_a_value_the_next_statement_is_found_on_its_line(data: st.DataObject) -> None:
    text = ""
    expected: dict[Place, int] = {}
    for number in range(data.draw(st.integers(1, 5))):
        text += data.draw(st.sampled_from(["", "\n", "# = [\n", "  "]))
        name = data.draw(st.sampled_from([f"n{number}", f'"n{number}"', f"'n{number}'"]))
        expected[(f"n{number}",)] = text.count("\n") + 1
        text += f"{name} = {data.draw(values())}{data.draw(st.sampled_from(['', '  # end']))}\n"
    read: dict[str, Any] = tomllib.loads(text)
    found = {each.path: each.first for each in statements(text)}
    assert found == expected
    assert {path[0] for path in found} == set(read)
