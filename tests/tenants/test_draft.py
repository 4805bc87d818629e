"""A file is replaced whole, or it stays as it was."""

import os
import stat
import threading
from pathlib import Path

import pytest

from app.tenants.draft import drafting
from app.tenants.file import BadTenants
from tests.tenants.files import TENANTS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tenants.toml"


def left_over(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()} - {path.name, f"{path.name}.lock"}


def test_a_new_file_is_its_owners_only(path: Path) -> None:
    with drafting(path) as draft:
        assert draft.text == ""
        draft.save(TENANTS)
    assert path.read_text() == TENANTS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert left_over(path) == set()


def test_the_rights_of_a_file_are_kept_and_it_is_never_half_written(path: Path) -> None:
    path.write_text(TENANTS)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12_345, 54_321)
    before = path.stat()
    with path.open() as reader, drafting(path) as draft:
        draft.save(draft.text + "# more\n")
        assert reader.read() == TENANTS, "who was reading reads the old one to its end"
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert path.read_text() == TENANTS + "# more\n"


def test_line_ends_are_the_files_own(path: Path) -> None:
    text = TENANTS.replace("\n", "\r\n")
    path.write_bytes(text.encode())
    with drafting(path) as draft:
        draft.save(draft.text)
    assert path.read_bytes() == text.encode()


def test_a_link_stays_a_link(path: Path) -> None:
    real = path.with_name("real.toml")
    real.write_text(TENANTS)
    path.symlink_to(real)
    with drafting(path) as draft:
        draft.save("# empty\n")
    assert path.is_symlink()
    assert real.read_text() == "# empty\n"


def test_a_bad_text_is_not_saved(path: Path) -> None:
    path.write_text(TENANTS)
    with pytest.raises(BadTenants), drafting(path) as draft:
        draft.save(TENANTS + "weight = 0\n")
    assert path.read_text() == TENANTS
    assert left_over(path) == set()


def test_a_full_disk_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path.write_text(TENANTS)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), drafting(path) as draft:
        draft.save("")
    assert path.read_text() == TENANTS
    assert left_over(path) == set()


def test_one_changes_it_after_the_other(path: Path) -> None:
    def add(number: int) -> None:
        with drafting(path) as draft:
            draft.save(draft.text + f"# {number}\n")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_text().split("\n")) == sorted(["", *(f"# {number}" for number in range(20))])
