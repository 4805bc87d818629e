import subprocess
import sys
from importlib.util import find_spec

import pytest

import gllm
from gllm.cli import main

HEAVY = ("app", "asyncio", "fastapi", "httpx", "pydantic", "torch", "uvicorn")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"gllm {gllm.__version__}\n"


def test_no_command_says_hello_and_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Hello from GLLM!")
    assert "serve" in out


@pytest.mark.parametrize("argv", [["server"], ["serve", "--prot", "1"], ["--nothing"], ["serve", "extra"]])
def test_what_is_not_understood_is_told_in_two_lines(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: gllm")
    assert "--help'.\n" in err


@pytest.mark.parametrize("argv", [["load", "/models/\udcff"], ["load", "m", "--", "--template=\udcff"]])
def test_what_is_no_text_is_told(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "\\udcff' is not UTF-8 text. Try" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["serve", "--help"], ["keys", "new", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    """That is what makes it quick."""
    script = f"""
import sys
from gllm.cli import main
try:
    main({argv!r})
finally:
    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert all(find_spec(name) for name in HEAVY if name != "torch")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["serve", "--port", "http"], "gllm: PORT must be a whole number, not 'http'.\n"),
        (
            ["serve", "--engine", "external"],
            "gllm: ENGINE_TYPE=external needs ENGINE_URLS: the base URLs of the servers to use.\n",
        ),
        (
            ["serve", "--port", "0", "--engine-url", "http://127.0.0.1:9"],
            "gllm: REDIS_URL must be a URL like redis://:PASSWORD@HOST:6379/0; "
            "in a password '#', '/' and '?' are written as %23, %2F and %3F.\n",
        ),
    ],
)
def test_a_bad_setting_is_told_and_ends_with_2(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOST", "PORT", "ENGINE_TYPE", "ENGINE_URLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_URL", "localhost")  # which is looked at last
    assert main(argv) == 2
    assert capsys.readouterr().err == sentence


def test_nobody_is_let_in_from_outside_by_accident(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "ALLOW_ANONYMOUS=true" in capsys.readouterr().err
