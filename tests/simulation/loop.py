"""An event loop whose time is a number: it jumps to the next timer when nothing else is left to do.

No descriptors, no threads, no clock on the wall. What runs, and in which order, follows from the code alone.
"""

import asyncio
import gc
import random
import traceback
from asyncio import base_events
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")

LONGEST_JUMP_S = 100_000.0
"""A timer further away than this is nothing to wait for: `asyncio` has some, for what is never to happen."""


class Deadlock(Exception):
    """Nothing is ready, and no timer will change that. The message says where everybody stands."""


class _Jumps:
    """Stands where a loop has its selector: being asked to sleep, it moves the time instead."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None or timeout > 0:
            self._loop.jump()
        return []


class VirtualLoop(base_events.BaseEventLoop):
    def __init__(self, began: float = 1_000.0, observe: Callable[[], None] = lambda: None) -> None:
        """`observe` looks on after each turn, when no callback is running."""
        super().__init__()
        self._now = began
        self._observe = observe
        self._selector = _Jumps(self)
        self._clock_resolution = 1e-9
        self.slow_callback_duration = float("inf")
        self.turns = 0

    def time(self) -> float:
        return self._now

    def jump(self) -> None:
        """To the next timer, which is there: `asyncio` has already thrown out those cancelled at the head."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]  # typeshed leaves it out
        if not timers or timers[0].when() - self._now > LONGEST_JUMP_S:
            raise Deadlock(_where_everybody_stands(self))
        self._now = max(self._now, timers[0].when())

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]  # the one place where every turn passes
        self.turns += 1
        self._observe()

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""


def run(loop: VirtualLoop, main: Coroutine[Any, Any, T], seed: int) -> T:
    """`main` to its end, with all that is drawn from `random` following from `seed`."""
    with _undisturbed(seed):
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(main)
        finally:
            try:
                _cancel_the_rest(loop)
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                asyncio.set_event_loop(None)
                loop.close()


@contextmanager
def _undisturbed(seed: int) -> Iterator[None]:
    """Garbage is not collected meanwhile: when it is depends on the rest of the process, and finalizers do things."""
    state, collecting = random.getstate(), gc.isenabled()
    random.seed(seed)
    gc.disable()
    try:
        with mock.patch.object(ThreadPoolExecutor, "submit", _done_at_once):
            yield
    finally:
        random.setstate(state)
        if collecting:
            gc.enable()


def _done_at_once(pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any, **kwargs: Any) -> "Future[T]":
    """What a thread does takes no time, and its news arrives in a later turn, as from a thread."""
    future: Future[T] = Future()
    try:
        future.set_result(work(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)
    return future


def _cancel_the_rest(loop: VirtualLoop) -> None:
    rest = _in_order(asyncio.all_tasks(loop))
    for task in rest:
        task.cancel()
    if rest:
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))


def _where_everybody_stands(loop: VirtualLoop) -> str:
    said = [f"nothing is left to happen at {loop.time():.3f} s, and these wait:"]
    for task in _in_order(asyncio.all_tasks(loop)):
        frames = "".join(line for frame in _frames(task.get_coro()) for line in traceback.format_stack(frame, limit=1))
        said.append(f"{task.get_name()}\n{frames}")
    return "\n".join(said)


def _frames(waiting: Any) -> Iterator[FrameType]:
    """From a task's first function to the one that waits."""
    while waiting is not None:
        for kind in ("cr", "ag", "gi"):
            frame = getattr(waiting, f"{kind}_frame", None)
            if frame is not None:
                yield frame
        waiting = next((getattr(waiting, name) for name in _AWAITS if hasattr(waiting, name)), None)


_AWAITS = ("cr_await", "ag_await", "gi_yieldfrom")


def _in_order(tasks: set["asyncio.Task[Any]"]) -> list["asyncio.Task[Any]"]:
    """As they were begun: their default names are numbered."""
    return sorted(tasks, key=lambda task: (len(task.get_name()), task.get_name()))
