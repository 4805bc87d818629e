"""`gllm`, counting Python's instructions and calls by function.

    python -m bench.counted FILE serve --quiet

SIGUSR2 begins, and SIGUSR2 ends: then FILE has `{"app/gateway/edge.py Edge.__call__": [calls, instructions]}`. A
coroutine that goes on counts as called.
"""

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from bench.machine import ROOT
from gllm.cli import main

_calls: Counter[CodeType] = Counter()
_instructions: Counter[CodeType] = Counter()


def _trace(frame: FrameType, event: str, _: object) -> Any:
    if event == "opcode":
        _instructions[frame.f_code] += 1
    elif event == "call":
        _calls[frame.f_code] += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
    return _trace


def _begin_or_end(path: Path) -> None:
    if sys.gettrace() is None:
        sys.settrace(_trace)
        return
    sys.settrace(None)
    path.write_text(json.dumps({_name(code): (_calls[code], _instructions[code]) for code in _calls}))


def _name(code: CodeType) -> str:
    under = max(
        (place for place in (str(ROOT), *sys.path) if code.co_filename.startswith(f"{place}/")), key=len, default=""
    )
    return f"{code.co_filename.removeprefix(f'{under}/')} {code.co_qualname}"


if __name__ == "__main__":
    file = Path(sys.argv.pop(1)).absolute()
    signal.signal(signal.SIGUSR2, lambda number, frame: _begin_or_end(file))
    sys.exit(main())
