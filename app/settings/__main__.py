"""`python -m app.settings` in a checkout writes the pages about the settings anew."""

from pathlib import Path

from app.settings.pages import write

write(Path.cwd())
