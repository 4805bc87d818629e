"""Every example in the documents is run: a fenced block after `<!-- run: gateway -->`, against the live gateway."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import ROOT, GatewayProcess, clean_environment

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/**/*.md")])
ADDRESS = re.compile(r"(localhost|127\.0\.0\.1):8000")
MARK = "<!-- run: gateway -->"
_BLOCK = re.compile(
    rf"(?P<mark>{MARK}\n)?^```(?P<language>bash|sh|python)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
_CURL = 'curl() { command curl --fail-with-body --silent --show-error --max-time 60 "$@"; }\n'
"""As in the document, but a refusal is a failure."""


@dataclass(frozen=True)
class Example:
    where: str
    language: str
    code: str
    marked: bool

    def command(self, url: str) -> list[str]:
        code = ADDRESS.sub(url.removeprefix("http://"), self.code)
        if self.language == "python":
            return [sys.executable, "-c", code]
        return ["bash", "-euo", "pipefail", "-c", _CURL + code]


def examples() -> list[Example]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for block in _BLOCK.finditer(text):
            where = f"{document.relative_to(ROOT)}:{text.count(chr(10), 0, block.start('language')) + 1}"
            found.append(Example(where, block["language"], block["code"], block["mark"] is not None))
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("example", [each for each in EXAMPLES if each.marked], ids=lambda each: each.where)
def test_an_example_does_what_it_shows(gateway: GatewayProcess, example: Example, tmp_path: Path) -> None:
    done = subprocess.run(
        example.command(gateway.url), capture_output=True, text=True, timeout=60, env=clean_environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert '"error"' not in done.stdout


def test_no_example_that_talks_to_a_gateway_escapes() -> None:
    assert [each.where for each in EXAMPLES if ADDRESS.search(each.code) and not each.marked] == []
    assert sum(each.where.startswith("README.md") for each in EXAMPLES if each.marked) >= 4
