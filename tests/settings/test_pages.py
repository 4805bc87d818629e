from pathlib import Path

import pytest

from app.settings import Settings
from app.settings.pages import env_example, pages

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize("place", list(pages()))
def test_the_page_is_current(place: str) -> None:
    assert (CHECKOUT / place).read_text() == pages()[place], "run `make docs`"


def test_the_example_says_the_defaults(tmp_path: Path) -> None:
    """Each line may be uncommented as it stands, and changes nothing."""
    lines = [
        line.removeprefix("# ")
        for line in env_example().splitlines()
        if "=" in line.partition(" ")[2].partition(" ")[0]
    ]
    given = [line for line in lines if line.partition("=")[0].isupper()]
    file = tmp_path / ".env"
    file.write_text("\n".join(given).replace("models/demo", str(CHECKOUT / "models" / "demo")))
    assert len(given) > 25
    assert Settings.load({}, file) == Settings.load({}, None)
