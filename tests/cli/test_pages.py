from pathlib import Path

from gllm.cli import COMMANDS
from gllm.cli.pages import PLACE, page

CHECKOUT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    assert (CHECKOUT / PLACE).read_text() == page(), "run `make docs`"


def test_every_command_is_on_it() -> None:
    names = [command.__name__.rpartition(".")[2].replace("_", "-") for command in COMMANDS]
    for name in names:
        assert f"\n## gllm {name.removeprefix('engine-')}" in page()


def test_no_row_is_without_words() -> None:
    assert [line for line in page().splitlines() if line.endswith("|  |")] == []
