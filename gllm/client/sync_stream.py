"""A stream, read by a thread: resumed when its connection breaks, and given up when its reader leaves."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx

from gllm.client.answers import Read
from gllm.client.call import Call
from gllm.client.errors import RemoteError, of_answer, translated
from gllm.client.events import Progress

T = TypeVar("T")

Send = Callable[[Call, int], httpx.Response]
"""A request for what comes after so many events, answered as far as its head."""
GiveUp = Callable[[Call], None]


class Reading:
    """Over all the connections that it takes."""

    def __init__(self, call: Call, send: Send, give_up: GiveUp, sleep: Callable[[float], None]) -> None:
        self._call = call
        self._send = send
        self._give_up = give_up
        self._retrying = call.retrying(sleep)
        self._progress = Progress()
        self._answer: httpx.Response | None = None
        self._received: Iterator[bytes] = iter(())
        self._asked = False
        self.closed = False

    def next(self) -> list[bytes] | None:
        """Some events, possibly none; `None` at the end."""
        if self.closed:
            return None
        if not self._progress.over:
            return self._retrying(self._attempt)
        self._finish()
        if self._progress.failure is not None:
            raise self._progress.failure
        return None

    def close(self) -> None:
        """The engine's work for it ends too, unless it is done."""
        if self.closed:
            return
        self.closed = True
        self._hang_up()
        if self._asked and not self._progress.over:
            self._give_up(self._call)

    def end(self) -> None:
        """As far as it came. What the server may still do for it ends by itself."""
        self.closed = True
        self._hang_up()

    def _attempt(self) -> list[bytes]:
        try:
            with translated():
                if self._answer is None:
                    self._open()
                self._call.check_time()
                received = next(self._received, None)
        except RemoteError as error:
            self._hang_up()
            raise self._progress.broken(error) from error.__cause__
        if received is None:
            self._hang_up()
            raise self._progress.broken()
        self._call.progressed()
        return self._progress.take(received)

    def _open(self) -> None:
        self._asked = True
        answer = self._answer = self._send(self._call, self._progress.seen)
        if answer.status_code != 200:
            raise of_answer(answer.status_code, answer.headers, answer.read())
        headers = answer.headers
        self._progress.opened(200, headers.get("content-type", ""), headers.get("x-request-id"))
        self._received = answer.iter_bytes()

    def _finish(self) -> None:
        """The connection's own end comes right after the stream's. Leaving before it would look like a hang-up."""
        with suppress(httpx.HTTPError, RemoteError):
            for _ in self._received:
                self._call.check_time()
        self.end()

    def _hang_up(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()


class Stream(Generic[T]):
    """An iterator of pieces. As a context manager, or after `close()`, it stops the engine's work when left early."""

    def __init__(self, reading: Reading, read: Read[T]) -> None:
        self._reading = reading
        self._read = read
        self._pieces: deque[T] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while not self._pieces:
            try:
                events = self._reading.next()
                if events is not None:
                    self._pieces.extend(piece for event in events if (piece := self._read(event)))
            except RemoteError:
                self._reading.end()
                raise
            except BaseException:
                self._reading.close()
                raise
            if events is None:
                raise StopIteration
        return self._pieces.popleft()

    def close(self) -> None:
        self._pieces.clear()
        self._reading.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        """Left without a word. The garbage collector comes in the middle of anything, and is not made to wait."""
        if not self._reading.closed:
            with suppress(RuntimeError):  # the interpreter is ending, and its sockets with it
                threading.Thread(target=self._reading.close, daemon=True).start()
