from pathlib import Path

from app.cluster.launchers.logfile import LogFile


def test_a_full_file_makes_room_for_the_next(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "a.log", max_bytes=10)
    for piece in (b"first\n", b"second\n", b"third\n"):
        log.write(piece)
    log.close()
    assert (tmp_path / "logs" / "a.log").read_bytes() == b"third\n"
    assert (tmp_path / "logs" / "a.log.1").read_bytes() == b"second\n"


def test_a_log_goes_on_where_the_last_run_ended(tmp_path: Path) -> None:
    for _ in range(2):
        log = LogFile(tmp_path / "a.log", max_bytes=100)
        log.write(b"line\n")
        log.close()
    assert (tmp_path / "a.log").read_bytes() == b"line\nline\n"


def test_a_place_that_cannot_be_written_hinders_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = LogFile(tmp_path / "file" / "a.log")
    log.write(b"lost\n")
    log.close()


def test_once_it_can_be_written_again_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.touch()
    log = LogFile(folder / "a.log")
    log.write(b"lost\n")
    folder.unlink()
    log.write(b"kept\n")
    log.close()
    log.write(b"too late\n")
    assert (folder / "a.log").read_bytes() == b"kept\n"


def test_a_disk_that_was_full_for_a_moment_costs_that_moment(tmp_path: Path) -> None:
    (tmp_path / "a.log").symlink_to("/dev/full")
    log = LogFile(tmp_path / "a.log")
    log.write(b"lost\n")
    (tmp_path / "a.log").unlink()
    log.write(b"kept\n")
    log.close()
    assert (tmp_path / "a.log").read_bytes() == b"kept\n"
