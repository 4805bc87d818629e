"""A good file becomes tenants and keys; a bad one a sentence that names the line, and never what may be a key."""

from datetime import date
from pathlib import Path

import pytest

from app.tenant import Limits, Priority, Tenant
from app.tenants.file import BadTenants, load, parse
from app.tenants.keys import digest_of
from tests.support.processes import ROOT
from tests.tenants.files import RESEARCH_KEY, TENANTS, hash_of

DIGEST = hash_of("x")
NAME = "must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first."
DAY = "must be a date, such as 2030-01-31, without quotes."


def refusal(text: str) -> str:
    with pytest.raises(BadTenants) as caught:
        parse(text)
    return str(caught.value)


def with_field(line: str) -> str:
    """On line 3."""
    return f'[[tenant]]\nname = "a"\n{line}\n'


def with_key(line: str) -> str:
    """On line 5."""
    return f'[[tenant]]\nname = "a"\n[[tenant.key]]\nsha256 = "{DIGEST}"\n{line}\n'


def test_a_file_becomes_tenants_and_keys() -> None:
    roster = parse(TENANTS)
    assert roster.tenants == (
        Tenant(
            "research",
            models=frozenset({"demo"}),
            weight=2.0,
            priority=Priority.NORMAL,
            limits=Limits(600, 200_000, 16),
            model_limits={"demo": Limits(concurrent=4)},
        ),
        Tenant("night", priority=Priority.BATCH),
        Tenant("operators", priority=Priority.INTERACTIVE, admin=True),
    )
    assert [key.tenant.name for key in roster.keys] == ["research", "night", "operators"]
    first = roster.keys[0]
    assert (first.digest, first.label, first.created) == (
        digest_of(RESEARCH_KEY.encode()),
        "laptop",
        date(2026, 1, 31),
    )


def test_what_is_left_out_is_no_limit_and_every_model() -> None:
    (tenant,) = parse('[[tenant]]\nname = "a"\n').tenants
    assert tenant == Tenant("a")


def test_the_same_may_be_written_inline() -> None:
    text = f'tenant = [{{ name = "a", key = [{{ sha256 = "{DIGEST.upper()}" }}], limits = {{ m.concurrent = 1 }} }}]'
    roster = parse(text)
    assert roster.tenants == (Tenant("a", model_limits={"m": Limits(concurrent=1)}),)
    assert roster.keys[0].digest.hex() == DIGEST


def test_a_key_expires_on_its_day() -> None:
    (key,) = parse(with_key("expires = 2030-01-31")).keys
    assert [key.expired(date(2030, 1, day)) for day in (30, 31)] == [False, True]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (with_field("weight = 0"), "line 3: weight must be more than 0."),
        (with_field("weight = nan"), "line 3: weight must be a number."),
        (with_field("weight = true"), "line 3: weight must be a number."),
        (with_field("weight = 1e9"), "line 3: weight must be at most 1,000,000."),
        (with_field('weight = "2"'), "line 3: weight must be a number."),
        (with_field("concurrent = 0"), "line 3: concurrent must be at least 1."),
        (with_field("concurrent = 1.5"), "line 3: concurrent must be a whole number."),
        (with_field("requests_per_minute = true"), "line 3: requests_per_minute must be a whole number."),
        (
            with_field("tokens_per_minute = 10_000_000_000_000"),
            "line 3: tokens_per_minute must be at most 1,000,000,000,000.",
        ),
        (with_field('admin = "yes"'), "line 3: admin must be true or false."),
        (with_field('priority = "high"'), "line 3: priority must be 'interactive', 'normal' or 'batch'."),
        (with_field("models = []"), "line 3: models must name at least one model; leave it out for all of them."),
        (with_field('models = "demo"'), "line 3: models must be a list."),
        (with_field('models = [\n  "a",\n  2,\n]'), "line 3: models must be text in quotes."),
        (with_field('models = ["a\\n"]'), "line 3: models must be printable text on one line."),
        (with_field('models = [""]'), "line 3: models must not be empty."),
        (with_field("models = ['" + "m" * 257 + "']"), "line 3: models must have at most 256 characters."),
        (with_field("wieght = 1"), "line 3: wieght is not a field that is known here (did you mean weight?)."),
        (with_field("color = 1"), "line 3: color is not a field that is known here."),
        (
            with_field("[tenant.limitz.demo]"),
            "line 3: limitz is not a field that is known here (did you mean limits?).",
        ),
        (with_field("limits = 5"), "line 3: limits must be a table."),
        (with_field("limits.demo = 5"), "line 3: demo must be a table."),
        (with_field("[tenant.limits]\nconcurrent = 5"), "line 4: concurrent must be a table."),
        (
            with_field("[tenant.limits.demo]\nweight = 5"),
            "line 4: weight is not a field that is known here (did you mean weight?).",
        ),
        (with_field('[tenant.limits.""]'), "line 3: a name must not be empty."),
        (
            with_field('models = ["a"]\n\n[tenant.limits.b]'),
            "line 5: limits are for a model that is not among those of line 3.",
        ),
        ("# nameless\n\n[[tenant]]\nweight = 1\n", "line 3: name is missing."),
        ('[[tenant]]\nname = ""\n', f"line 2: name {NAME}"),
        ('[[tenant]]\nname = "a b"\n', f"line 2: name {NAME}"),
        ('[[tenant]]\nname = "a\\n"\n', f"line 2: name {NAME}"),
        (f'[[tenant]]\nname = "{"a" * 65}"\n', f"line 2: name {NAME}"),
        ("[[tenant]]\nname = 5\n", "line 2: name must be text in quotes."),
        (with_field('[[tenant]]\n\nname = "a"'), "line 5: tenant 'a' stands in line 2 already."),
        ('[tenant]\nname = "a"\n', "line 1: tenant must be written as [[tenant]], one for each."),
        ("tenant = 1\n", "line 1: tenant must be written as [[tenant]], one for each."),
        ("\ntenants = []\n", "line 2: tenants is not a field that is known here (did you mean tenant?)."),
        (with_key("expires = 2030-01-31T00:00:00"), f"line 5: expires {DAY}"),
        (with_key('expires = "2030-01-31"'), f"line 5: expires {DAY}"),
        (with_key('label = "\\u0007"'), "line 5: label must be printable text on one line."),
        (with_key('[[tenant.key]]\nlabel = "b"'), "line 5: sha256 is missing."),
        (with_key(f'[[tenant.key]]\nsha256 = "{DIGEST.upper()}"'), "line 6: this key stands in line 4 already."),
        (
            with_key(f'[[tenant]]\nname = "b"\n[[tenant.key]]\nsha256 = "{DIGEST}"'),
            "line 8: this key stands in line 4 already.",
        ),
        (with_field("weight = "), "line 3: this is not valid TOML: Invalid value."),
        (with_field("weight = 1\nweight = 2"), "line 4: this is not valid TOML: Cannot overwrite a value."),
        (with_field('models = ["a"'), "line 4: this is not valid TOML: Unclosed array."),
        ("[[tenant]]\r\nname = 'a'\r\nweight = 0\r\n", "line 3: weight must be more than 0."),
        ("\ufeff[[tenant]]\n", "line 1: this is not valid TOML: Invalid statement."),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, sentence: str) -> None:
    assert refusal(text).startswith(sentence)


@pytest.mark.parametrize("value", ["[" * 10_000, "9" * 10_000])
def test_a_monstrous_value_is_refused_like_any_other(value: str) -> None:
    assert refusal(with_field(f"x = {value}")) == "something in it is nested too deeply, or a number too long."


def test_of_several_mistakes_the_first_in_the_file_is_told() -> None:
    assert refusal('[[tenant]]\nname = "a"\nadmin = 1\nweight = 0\nblue = 1\n').startswith("line 3: admin")


CANARY = "gllm-canary" + "x" * 37


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (with_field(f'[[tenant.key]]\nsha256 = "{CANARY}"'), 4),
        (with_field(f'[[tenant.key]]\nkey = "{CANARY}"'), 3),
        (with_field(f'key = ["{CANARY}"]'), 3),
        (with_field(f'key = "{CANARY}"'), 3),
        (with_field(f'keys = ["{CANARY}"]'), 3),
        (with_field(f'"{CANARY}" = "laptop"'), 3),
        (with_field(f"{CANARY}"), 3),
        (with_field(f"[{CANARY}]\n[{CANARY}]"), 4),
        (with_field(f"x = {{ {CANARY} = 1, {CANARY} = 2 }}"), 3),
        (with_field(f'weight = "{CANARY}"'), 3),
        (with_field(f'priority = "{CANARY}"'), 3),
        (with_field(f'[tenant.limits."{CANARY}"]\nmost = 1'), 4),
        (with_field(f'[tenant.limits]\n"{CANARY}" = 1'), 4),
        (f'[[tenant]]\nname = "{CANARY}"\n[[tenant]]\nname = "{CANARY}"\n', 2),
    ],
)
def test_a_key_in_plain_text_is_refused_with_its_line_and_not_repeated(text: str, line: int) -> None:
    told = refusal(text)
    assert told.startswith(f"line {line}: ")
    assert "canary" not in told


def test_who_writes_a_key_where_its_hash_belongs_is_told_what_to_do() -> None:
    assert refusal(with_field(f'[[tenant.key]]\nsha256 = "{CANARY}"')) == (
        "line 4: sha256 must be the SHA-256 of a key, 64 hexadecimal digits, never a key itself: "
        "'gllm keys new' writes it."
    )


# --- on disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[[tenant]]\nweight = 1\n", "{path}, line 1: name is missing."),
        (b"[[tenant]]\nname = '\xff'\n", "{path}, line 2: this is not UTF-8 text."),
        (b"# nobody\n", "{path}: there is no [[tenant]] in it."),
        (b"", "{path}: there is no [[tenant]] in it."),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_bytes(content)
    with pytest.raises(BadTenants) as caught:
        load(path)
    assert str(caught.value) == sentence.format(path=path)


def test_a_file_that_is_not_there_or_is_a_folder_is_told(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "nope", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(BadTenants) as caught:
            load(path)
        assert str(caught.value) == f"{path}: it cannot be read: {why}."


def test_the_example_that_comes_along_is_good() -> None:
    roster = load(ROOT / "deploy" / "tenants.example.toml")
    assert len(roster.tenants) >= 3
    assert roster.keys
