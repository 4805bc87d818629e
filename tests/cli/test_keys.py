"""`gllm keys`, as a person or a script runs it."""

import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.tenants.file import load
from app.tenants.keys import digest_of
from gllm.cli import main
from tests.tenants.files import RESEARCH_KEY, TENANTS, hash_of

TODAY = datetime.now(UTC).date()
TOMORROW = TODAY + timedelta(days=1)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tenants.toml"


@pytest.fixture
def keys(file: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`gllm keys … --file tenants.toml`: exit code, what it printed, what it said beside."""

    def run(*args: str) -> tuple[int, str, str]:
        try:
            code = main(["keys", *args, "--file", str(file)])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_first_key_makes_the_file_the_tenant_and_is_shown_once(keys: Run, file: Path) -> None:
    code, out, err = keys("new", "research", "--label", "laptop", "--expires", TOMORROW.isoformat())
    assert code == 0
    key = out.strip()
    assert re.fullmatch(r"gllm-[\w-]{43}", key)
    digest = digest_of(key.encode()).hex()
    assert err == (f"Key {digest[:12]} of new tenant 'research'; {file} holds its hash only, so keep it now:\n")
    (found,) = load(file).keys
    assert (found.digest.hex(), found.tenant.name, found.label) == (digest, "research", "laptop")
    assert (found.created, found.expires) == (TODAY, TOMORROW)
    assert key not in file.read_text()


def test_what_a_new_tenant_may_have_is_written_down(keys: Run, file: Path) -> None:
    flags = "--models a,b/c --weight 2.5 --priority batch --requests-per-minute 60 --tokens-per-minute 1000"
    assert keys("new", "night", *flags.split(), "--concurrent", "3", "--admin")[0] == 0
    (tenant,) = tomllib.loads(file.read_text())["tenant"]
    tenant.pop("key")
    assert tenant == {
        "name": "night",
        "models": ["a", "b/c"],
        "weight": 2.5,
        "priority": "batch",
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "concurrent": 3,
        "admin": True,
    }


def test_a_second_key_of_a_tenant_leaves_the_rest_as_it_is(keys: Run, file: Path) -> None:
    file.write_text(TENANTS)
    code, out, _ = keys("new", "research")
    added = f'\n[[tenant.key]]\nsha256 = "{hash_of(out.strip())}"\ncreated = {TODAY}\n'
    assert code == 0
    assert file.read_text() == TENANTS.replace("created = 2026-01-31\n", f"created = 2026-01-31\n{added}")


def test_keys_are_listed_by_id_and_tenants_without_one_too(keys: Run, file: Path) -> None:
    past = 'expires = 2020-01-31\n\n[[tenant]]\nname = "new"\n'
    file.write_text(TENANTS + past)
    code, out, err = keys("list")
    assert (code, err) == (0, "")
    ids = [each.digest.hex()[:12] for each in load(file).keys]
    assert out.splitlines() == [
        "ID            TENANT     CREATED     EXPIRES            LABEL",
        f"{ids[0]}  research   2026-01-31                     laptop",
        f"{ids[1]}  night",
        f"{ids[2]}  operators              2020-01-31 (past)",
        "no key        new",
    ]


@pytest.mark.parametrize("by", ["id", "ID", "more of it", "itself"])
def test_a_key_is_revoked_by_its_id_or_by_itself(keys: Run, file: Path, by: str) -> None:
    file.write_text(TENANTS)
    digest = hash_of(RESEARCH_KEY)
    given = {"id": digest[:12], "ID": digest[:12].upper(), "more of it": digest, "itself": RESEARCH_KEY}[by]
    code, out, _ = keys("revoke", given)
    assert (code, out) == (0, f"Key {digest[:12]} of tenant 'research' is revoked.\n")
    assert [key.tenant.name for key in load(file).keys] == ["night", "operators"]
    assert len(load(file).tenants) == 3
    assert "# Theirs, for the cron job." in file.read_text()


@pytest.mark.parametrize("given", ["", "f", "0" * 12, "research", "gllm-unknown-canary"])
def test_what_is_no_key_is_not_revoked_and_not_repeated(keys: Run, file: Path, given: str) -> None:
    file.write_text(TENANTS)
    code, out, err = keys("revoke", given)
    assert (code, out, err) == (2, "", f"gllm: There is no such key in {file}: 'gllm keys list' shows their ids.\n")
    assert file.read_text() == TENANTS


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["new", "a b"], "gllm: name must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first.\n"),
        (["new", "a", "--weight", "0"], "gllm: weight must be more than 0.\n"),
        (["new", "a", "--concurrent", "0"], "gllm: concurrent must be at least 1.\n"),
        (["new", "a", "--models", "a,"], "gllm: models must not be empty.\n"),
        (["new", "a", "--label", "x\ny"], "gllm: label must be printable text on one line.\n"),
        (["new", "a", "--label", "x\udcff"], "gllm: label must be printable text on one line.\n"),
        (["new", "research", "--admin"], "gllm: Tenant 'research' exists: change what it may have in {file}.\n"),
        (["new", "a", "--weight", "much"], "invalid float value: 'much'"),
        (["new", "a", "--priority", "high"], "invalid choice: 'high'"),
        (["new", "a", "--expires", "soon"], "give a date such as 2030-01-31"),
        (["new", "a", "--expires", TODAY.isoformat()], "the key would have expired already"),
        (["new"], "the following arguments are required: NAME"),
        (["ls"], "invalid choice: 'ls'"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(keys: Run, file: Path, args: list[str], sentence: str) -> None:
    file.write_text(TENANTS)
    code, out, err = keys(*args)
    assert (code, out) == (2, "")
    assert sentence.format(file=file) in err
    assert file.read_text() == TENANTS


@pytest.mark.parametrize("args", [["new", "a"], ["list"], ["revoke", "0" * 12]])
def test_a_bad_file_is_told_with_its_line_and_left_alone(keys: Run, file: Path, args: list[str]) -> None:
    bad = '[[tenant]]\nname = "a"\nwieght = 1\n'
    file.write_text(bad)
    code, out, err = keys(*args)
    assert (code, out) == (2, "")
    assert err == f"gllm: {file}, line 3: wieght is not a field that is known here (did you mean weight?).\n"
    assert file.read_text() == bad


def test_a_folder_that_is_not_there_is_told(keys: Run, file: Path, tmp_path: Path) -> None:
    tmp_path.rmdir()
    assert keys("new", "a") == (1, "", f"gllm: {file} cannot be changed: No such file or directory.\n")
    assert keys("list") == (2, "", f"gllm: {file}: it cannot be read: No such file or directory.\n")


def test_the_file_is_the_gateways_own_where_none_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.delenv("TENANTS_FILE", raising=False)
    assert main(["keys", "list"]) == 2
    assert capsys.readouterr().err == "gllm: Which file? Give --file tenants.toml, or set TENANTS_FILE.\n"
    file.with_name(".env").write_text("TENANTS_FILE=tenants.toml\n")
    assert main(["keys", "new", "a"]) == 0
    monkeypatch.setenv("TENANTS_FILE", str(file))
    assert main(["keys", "new", "b"]) == 0
    assert [tenant.name for tenant in load(file).tenants] == ["a", "b"]
