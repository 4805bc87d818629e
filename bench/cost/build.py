"""The engine and the load generator: compiled where they are first needed, and again when their text changes."""

import functools
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

NATIVE = Path(__file__).with_name("native")
CACHE = Path(__file__).parents[1] / ".cache"
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE")


class NoCompiler(Exception):
    """The text is a sentence for whoever started the measurement."""


@functools.cache
def built(name: str, cache: Path = CACHE) -> Path:
    """The same for a whole run, whoever edits its text meanwhile."""
    text = b"".join(path.read_bytes() for path in (NATIVE / "loop.h", NATIVE / f"{name}.c"))
    program = cache / "build" / f"{name}-{sha256(text).hexdigest()[:16]}"
    if not program.exists():
        compiler = shutil.which("cc")
        if compiler is None:
            raise NoCompiler("The load generator is written in C: this needs `cc` (Debian: apt install gcc libc6-dev).")
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(".new")
        subprocess.run([compiler, *FLAGS, "-o", unfinished, NATIVE / f"{name}.c", "-lm"], check=True)
        unfinished.replace(program)
    return program
