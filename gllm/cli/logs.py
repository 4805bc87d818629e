"""What Python's own logging carries (warnings, tracebacks), in the shape that the settings ask for."""

import json
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import MemoryHandler

from app.settings import Logs
from app.telemetry.logs import LogWriter

TEXT = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "event": "log",
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Lines(logging.Handler):
    """What is logged on the event loop must not wait for who reads it, as lines of requests do not."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(self.format(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """By `logging` itself, at the end."""
        self._writer.close()
        super().close()


def held_back() -> MemoryHandler:
    """Keeps what is logged before it is known how."""
    early = MemoryHandler(capacity=1_000, flushLevel=logging.CRITICAL)
    logging.getLogger().addHandler(early)
    return early


def configure(logs: Logs, early: MemoryHandler) -> None:
    root = logging.getLogger()
    root.removeHandler(early)
    handler = Lines(LogWriter(sys.stderr))
    as_json = logs.format == "json" or (logs.format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(JsonLines() if as_json else TEXT)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if logs.level == "debug" else logging.WARNING)
    early.setTarget(handler)
    early.close()
