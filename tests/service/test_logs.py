"""Logging as gserve's scripts have it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gllm import setup_logging


@contextmanager
def fresh() -> Iterator[logging.Logger]:
    """The root logger as a program finds it."""
    root, quiet = logging.getLogger(), logging.getLogger("httpx")
    known, levels = root.handlers, (root.level, quiet.level)
    root.handlers = []
    try:
        yield root
    finally:
        root.handlers = known
        root.setLevel(levels[0])
        quiet.setLevel(levels[1])


@pytest.mark.parametrize(
    ("said", "in_environment", "expected"),
    [
        (None, "INFO", logging.INFO),
        (None, "debug", logging.DEBUG),
        (logging.ERROR, "DEBUG", logging.ERROR),
        ("WARNING", "DEBUG", logging.WARNING),
        (None, "chatty", logging.INFO),
    ],
)
def test_the_level_is_the_one_said_else_the_environments(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: int | str | None,
    in_environment: str,
    expected: int,
) -> None:
    monkeypatch.setenv("GSERVE_LOG_LEVEL", in_environment)
    with fresh() as root:
        setup_logging(said)
        assert root.level == expected
    assert os.environ["GSERVE_LOG_LEVEL"] == logging.getLevelName(expected)
    warned = "'chatty' is not a log level" in capsys.readouterr().err
    assert warned == (in_environment == "chatty")


def test_a_line_looks_as_it_did_and_comes_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GSERVE_LOG_LEVEL", "INFO")
    with fresh():
        setup_logging()
        setup_logging()
        logging.getLogger("mine").info("up")
        logging.getLogger("httpx").info("a request")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("INFO ")
    assert "[test_logs.py:" in line
    assert line.endswith("up")
