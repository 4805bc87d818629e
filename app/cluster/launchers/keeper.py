"""Keeps one engine: a small process between the gateway and the engine, so that nothing outlives the gateway.

    python keeper.py GRACE_S COMMAND...

Its standard input is a pipe that the gateway holds. When that pipe ends, because the gateway closed it or because the
gateway is dead, however it died, or when anything is written to it, the engine's group gets SIGTERM, GRACE_S to obey
(less if the gateway is dead), and SIGKILL. Processes that the engine started and left behind are adopted here (Linux:
child subreaper) and killed too. Only then does the keeper end, with the engine's exit code. SIGTERM to the keeper means
no grace at all.

Descriptors that it is started with are a lease (of GPUs): it holds them as long as it lives, the engine never does.

A script of its own with the standard library only: it is up in milliseconds, and forking in it is safe since it has
one thread, which cannot be said of the gateway.
"""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NOT_STARTED = 127
ORPHAN_GRACE_S = 2.0
"""Nobody waits for an orphan, and its port and GPU are wanted."""


def main(grace_s: float, command: list[str]) -> int:
    _keep_what_is_open()
    wakes = _wake_on(signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)
    _prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    engine = _start(command)
    held, kill_at = True, float("inf")
    while (code := _exit_code(engine)) is None:
        left = max(0.0, kill_at - time.monotonic())
        readable, _, _ = select.select([wakes, *([0] if held else [])], [], [], None if left == float("inf") else left)
        arrived = os.read(wakes, 512) if wakes in readable else b""
        if signal.SIGHUP in arrived:
            kill_at = min(kill_at, time.monotonic() + ORPHAN_GRACE_S)
        if signal.SIGTERM in arrived:
            kill_at = 0.0
        if 0 in readable:
            os.read(0, 512)
            held = False
            kill_at = min(kill_at, time.monotonic() + grace_s)
            _signal_group(engine, signal.SIGTERM)
        if time.monotonic() >= kill_at:
            _signal_group(engine, signal.SIGKILL)
            kill_at = float("inf")
    _signal_group(engine, signal.SIGKILL)
    _end_the_rest()
    return code


def _keep_what_is_open() -> None:
    """To ourselves. One by one: in containers the limit of descriptors may be a thousand million."""
    for each in map(int, os.listdir("/dev/fd")):
        if each > 2:
            with suppress(OSError):  # the listing's own is closed by now
                os.set_inheritable(each, False)


def _wake_on(*signals: signal.Signals) -> int:
    """A descriptor from which the numbers of arriving signals are read."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for each in signals:
        signal.signal(each, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return reader


def _start(command: list[str]) -> int:
    keeper = os.getpid()
    engine = os.fork()
    if engine:
        with suppress(PermissionError):  # it is in its program already, hence in its group
            os.setpgid(engine, engine)
        return engine
    try:
        os.setpgid(0, 0)
        for each in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(each, signal.SIG_DFL)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == keeper:  # else it died before the line above
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", flush=True)
    finally:
        os._exit(NOT_STARTED)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _exit_code(engine: int) -> int | None:
    """Bury whoever has ended; the engine's code if it is among them, as a shell would tell it."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return None
        if pid == engine:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _end_the_rest() -> None:
    """Kill what was adopted. Killing one may hand its own children to us, hence again and again."""
    while True:
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    me = os.getpid()
    for entry in os.listdir("/proc") if sys.platform == "linux" else ():
        with suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{int(entry)}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
            if parent == me:
                yield int(entry)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
