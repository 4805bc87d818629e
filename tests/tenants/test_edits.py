"""Edits add and take away a few lines, and every other byte stays as it is."""

import tomllib
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tenants.edits import CannotEdit, Value, add_key, add_tenant, remove_key
from app.tenants.file import parse
from app.tenants.keys import digest_of
from tests.tenants.files import BATCH_KEY, RESEARCH_KEY, TENANTS, hash_of

NEW: dict[str, Value] = {"sha256": hash_of("new"), "label": 'two "words"', "created": date(2026, 1, 31)}
BLOCK = f'[[tenant.key]]\nsha256 = "{hash_of("new")}"\nlabel = "two \\"words\\""\ncreated = 2026-01-31\n'


def test_a_key_is_added_after_all_that_is_said_of_its_tenant() -> None:
    text = add_key(TENANTS, "research", NEW)
    assert text == TENANTS.replace("created = 2026-01-31\n", f"created = 2026-01-31\n\n{BLOCK}")
    assert [key.tenant.name for key in parse(text).keys] == ["research", "research", "night", "operators"]


def test_a_key_of_the_last_tenant_stands_at_the_end() -> None:
    assert add_key(TENANTS, "operators", NEW) == f"{TENANTS}\n{BLOCK}"


def test_comments_that_belong_to_the_next_tenant_stay_with_it() -> None:
    text = '[[tenant]]\nname = "a" # the first\n# of b:\n[[tenant]]\nname = "b"'
    assert add_key(text, "a", NEW) == (
        f'[[tenant]]\nname = "a" # the first\n\n{BLOCK}# of b:\n[[tenant]]\nname = "b"\n'
    )


def test_a_tenant_is_added_at_the_end() -> None:
    fields: dict[str, Value] = {"name": "new", "models": ["a", "é\t"], "weight": 0.5, "concurrent": 3, "admin": True}
    text = add_tenant(TENANTS, fields)
    assert text.startswith(TENANTS)
    assert tomllib.loads(text)["tenant"][-1] == fields


@pytest.mark.parametrize(("text", "begin"), [("", ""), ("# x", "# x\n\n"), ("\n", "\n"), ("# x\r\n", "# x\r\n\r\n")])
def test_a_file_may_be_empty_and_end_as_it_likes(text: str, begin: str) -> None:
    end = "\r\n" if "\r" in text else "\n"
    assert add_tenant(text, {"name": "a"}) == f'{begin}[[tenant]]{end}name = "a"{end}'


def test_a_key_is_removed_and_nothing_else() -> None:
    gone = f'\n[[tenant.key]]\nsha256 = "{hash_of(RESEARCH_KEY)}"\nlabel = "laptop"\ncreated = 2026-01-31\n'
    assert remove_key(TENANTS, digest_of(RESEARCH_KEY.encode())) == TENANTS.replace(gone, "")
    gone = f'[[tenant.key]]\nsha256 = "{hash_of(BATCH_KEY)}"\n'
    assert remove_key(TENANTS, digest_of(BATCH_KEY.encode())) == TENANTS.replace(gone, ""), "what people wrote stays"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@given(st.lists(st.sampled_from(["research", "night", "operators"]), min_size=1, max_size=6))
def test_what_was_added_can_be_removed_and_the_file_is_as_it_was(end: str, names: list[str]) -> None:
    before = text = TENANTS.replace("\n", end)
    for number, name in enumerate(names):
        text = add_key(text, name, {"sha256": hash_of(str(number))})
        assert parse(text).keys
    for number in range(len(names)):
        text = remove_key(text, digest_of(str(number).encode()))
    assert text == before


def test_a_file_in_another_style_is_not_spoilt() -> None:
    inline = f'tenant = [{{ name = "a", key = [{{ sha256 = "{hash_of("x")}" }}] }}]\n'
    with pytest.raises(CannotEdit, match="by hand"):
        add_key(inline, "a", NEW)
    with pytest.raises(CannotEdit, match="by hand"):
        remove_key(inline, digest_of(b"x"))
