"""Who hears what happens: the metrics page, traces, the journal, the log."""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI

from app.clock import Clock, unix_now
from app.gateway.control.ancestor import ADD_WORKER
from app.gateway.control.operators import WORKERS
from app.gateway.edge import RECORD
from app.gateway.endpoints import PROBED
from app.settings import BadSetting, Settings
from app.telemetry.base import CollectorChanged, Everyone, Telemetry
from app.telemetry.journal import Journal
from app.telemetry.logs import LogWriter, RequestLog
from app.telemetry.prometheus import Metrics
from app.telemetry.words import Words, coloured
from app.version import VERSION

if TYPE_CHECKING:
    from app.telemetry.tracing.tracer import Tracer

SPANS_SENT_S = 3.0
"""How long a stop waits for the collector to take the last spans."""


class Observers:
    """Those that the settings ask for, and all of them together as `telemetry`."""

    def __init__(self, settings: Settings, clock: Clock, beside: Sequence[Telemetry]) -> None:
        self._settings = settings
        self._clock = clock
        wanted = settings.telemetry
        self.journal = Journal(wanted.journal) if wanted.journal else None
        self.metrics = Metrics(VERSION, settings.engine.type, settings.routing.policy) if wanted.metrics else None
        self.log = LogWriter()
        self.tracer = self._tracer() if wanted.traced else None
        parts = (self.metrics, self.tracer, self.journal, self._request_log(), *beside)
        self.telemetry = Everyone(*(part for part in parts if part is not None))

    def instrument(self, app: FastAPI) -> None:
        """What FastAPI serves has spans of its own."""
        if self.tracer is None:
            return
        from app.telemetry.tracing.instrumentation import instrument

        instrument(app, self.tracer.provider, self._settings.telemetry.otel, lambda scope: scope[RECORD], PROBED)

    async def aclose(self) -> None:
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close, SPANS_SENT_S)
        self.log.close()

    def _request_log(self) -> RequestLog | None:
        logs = self._settings.logs
        if logs.level not in ("debug", "info"):
            return None
        as_json = logs.format == "json" or (logs.format == "auto" and not sys.stderr.isatty())
        words = None if as_json else Words(coloured=coloured(sys.stderr, os.environ))
        unlogged = () if logs.level == "debug" else PROBED | {ADD_WORKER, WORKERS}
        return RequestLog(self.log, words=words, unlogged=unlogged)

    def _tracer(self) -> "Tracer":
        """Where it is off, its SDK is not even imported."""
        from app.telemetry.tracing.sdk import NoExporter, Sdk
        from app.telemetry.tracing.tracer import Tracer

        dropped = self.metrics.spans_dropped if self.metrics else lambda spans: None
        try:
            sdk = Sdk.configured(self._settings.telemetry.otel, VERSION)
        except NoExporter as error:
            raise BadSetting(str(error)) from None
        engine = self._settings.engine.type
        return Tracer(sdk, engine, self._clock, unix_now, dropped, self._collector_changed)

    def _collector_changed(self, available: bool, reason: str) -> None:
        self.telemetry.note(CollectorChanged(available, reason))
