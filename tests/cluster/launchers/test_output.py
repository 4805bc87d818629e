"""What is remembered of what a process says."""

from pathlib import Path

import pytest

from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.output import ERROR_CHARS, TAIL_LINES, Output

WORKER = "(Worker pid=32582) ERROR 11-27 16:03:43 [multiproc_executor.py:953] "
CORE = "(EngineCore pid=32437) ERROR 11-27 16:03:46 [core.py:1510] "


def said(tmp_path: Path, *lines: str) -> Output:
    log = LogFile(tmp_path / "log")
    output = Output(log, lambda line: None)
    output.take("".join(f"{line}\n" for line in lines).encode())
    output.end()
    log.close()
    return output


def test_of_processes_that_fall_one_after_the_other_the_first_ones_error_is_kept(tmp_path: Path) -> None:
    """As vLLM 0.32 tells of a file of weights that is cut off, but for most of its tracebacks."""
    output = said(
        tmp_path,
        f"{WORKER}Traceback (most recent call last):",
        f'{WORKER}    with safe_open(st_file, framework="pt") as f:',
        f"{WORKER}safetensors._safetensors_rust.SafetensorError: Error while deserializing header: file not covered",
        f"{CORE}Exception: WorkerProc initialization failed due to an exception in a background process.",
        *(f"  File line {number}" for number in range(2 * TAIL_LINES)),
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    )
    assert output.first_error == "SafetensorError: Error while deserializing header: file not covered"
    assert output.buried_error == output.first_error
    assert len(output.tail) == TAIL_LINES


def test_an_error_among_the_last_lines_is_plain_to_see(tmp_path: Path) -> None:
    assert said(tmp_path, "ValueError: no model", "bye").buried_error == ""


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (f"{CORE}torch.OutOfMemoryError: CUDA out of memory.", "OutOfMemoryError: CUDA out of memory."),
        (
            "ValueError: No memory for the cache.",
            "ValueError: No memory for the cache.",
        ),
        ("OSError: " + "x" * 1_000, ("OSError: " + "x" * 1_000)[:ERROR_CHARS]),
        ('WARNING 11-27 14:09:25 [interface.py:358] Failed to import: ModuleNotFoundError("No module")', ""),
        ("INFO 11-27 14:09:25 [a.py:1] retried after ConnectionError: refused", ""),
        ("KeyError", ""),
        ("loading weights", ""),
    ],
)
def test_an_error_is_the_last_line_of_a_traceback(tmp_path: Path, line: str, error: str) -> None:
    assert said(tmp_path, line).first_error == error
