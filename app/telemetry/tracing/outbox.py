"""What waits to be sent to the collector: bounded, and sent by a thread of its own, so that a collector that is slow or
dead costs requests nothing.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from app.telemetry.tracing.sdk import Batches

log = logging.getLogger("gllm.tracing")

EXPORTER_LOG = "opentelemetry.exporter"
MAX_REASON = 300

T = TypeVar("T")
"""What is known of a request when it has ended, from which its spans are made."""


class Outbox(Generic[T]):
    def __init__(
        self,
        exporter: SpanExporter,
        batches: Batches,
        spans_of: Callable[[T], Sequence[ReadableSpan]],
        count_of: Callable[[T], int],
        on_dropped: Callable[[int], None],
        on_change: Callable[[bool, str], None],
    ) -> None:
        """`on_dropped` hears how many spans are lost; `on_change`, whether the collector takes them, and why not."""
        self._exporter = exporter
        self._batches = batches
        self._spans_of = spans_of
        self._count_of = count_of
        self._on_dropped = on_dropped
        self._on_change = on_change
        self._waiting: deque[T | ReadableSpan] = deque()
        self._taken = True
        self._reason = _FirstWord()
        self._due = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="span-sender", daemon=True)
        self._thread.start()

    def put(self, told: T | ReadableSpan) -> None:
        waiting = len(self._waiting)
        if waiting >= self._batches.max_waiting or self._closing:
            self._on_dropped(self._spans_in(told))
            return
        self._waiting.append(told)
        if waiting + 1 == self._batches.max_size:
            self._due.set()

    def close(self, limit_s: float) -> None:
        """Send what waits. What cannot be sent in time is lost."""
        self._closing = True
        self._due.set()
        self._thread.join(limit_s)
        self._exporter.shutdown()
        while (lost := self._pop()) is not None:
            self._on_dropped(self._spans_in(lost))

    # --- in its own thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        exporter_log = logging.getLogger(EXPORTER_LOG)
        exporter_log.addHandler(self._reason)
        exporter_log.propagate = False  # it would say at every try what `on_change` says once
        while not self._closing:
            self._due.wait(self._batches.every_s)
            self._due.clear()
            self._send_waiting()
        self._send_waiting()
        exporter_log.removeHandler(self._reason)

    def _send_waiting(self) -> None:
        while batch := self._next_batch():
            self._send(batch)

    def _next_batch(self) -> list[ReadableSpan]:
        batch: list[ReadableSpan] = []
        while len(batch) < self._batches.max_size and (told := self._pop()) is not None:
            try:
                batch += [told] if isinstance(told, ReadableSpan) else self._spans_of(told)
            except Exception:  # one request that nobody foresaw must not end the telling of all others
                log.exception("the spans of a request could not be made")
                self._on_dropped(self._spans_in(told))
        return batch

    def _send(self, batch: list[ReadableSpan]) -> None:
        self._reason.text = ""
        taken = self._exporter.export(batch) is SpanExportResult.SUCCESS
        if not taken:
            self._on_dropped(len(batch))
        if taken is not self._taken:
            self._taken = taken
            self._on_change(taken, self._reason.text)

    def _pop(self) -> T | ReadableSpan | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _spans_in(self, told: T | ReadableSpan) -> int:
        return 1 if isinstance(told, ReadableSpan) else self._count_of(told)


class _FirstWord(logging.Handler):
    """Why the exporter failed: what it says first of one try, before it tries again and gives up."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = self.text or record.getMessage()[:MAX_REASON]
