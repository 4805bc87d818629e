"""`gllm`, with a look every few milliseconds of its CPU at what it is about.

    python -m bench.sampled FILE serve --quiet

At SIGUSR2 it begins anew; when it ends, FILE has each place in the code and how often it was met there: a JSON object
of lines such as `app/gateway/edge.py > app/gateway/pipeline.py`, from the outermost to the innermost file.
"""

import atexit
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from bench.machine import ROOT
from gllm.cli import main

EVERY_S = 0.002
DEEPEST = 40

_seen: Counter[str] = Counter()


def _look(number: int, frame: FrameType | None) -> None:
    files: list[str] = []
    while frame is not None and len(files) < DEEPEST:
        file = frame.f_code.co_filename
        if not files or files[-1] != file:
            files.append(file)
        frame = frame.f_back
    _seen[" > ".join(reversed(files))] += 1


def _tell(path: Path) -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)  # a look meanwhile would change what is being written
    path.write_text(json.dumps({place.replace(f"{ROOT}/", ""): count for place, count in _seen.items()}))


if __name__ == "__main__":
    atexit.register(_tell, Path(sys.argv.pop(1)).absolute())
    signal.signal(signal.SIGPROF, _look)
    signal.signal(signal.SIGUSR2, lambda number, frame: _seen.clear())
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    sys.exit(main())
