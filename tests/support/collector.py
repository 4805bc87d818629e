"""A collector of traces: a real server that takes OTLP over HTTP, and can be slow or unwilling."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Seen:
    """A span, in plain words."""

    def __init__(self, span: Span, resource: dict[str, Any]) -> None:
        self.name = span.name
        self.trace_id = span.trace_id.hex()
        self.span_id = span.span_id.hex()
        self.parent_id = span.parent_span_id.hex()
        self.kind = Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
        self.failed = span.status.code == 2
        self.began, self.ended = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
        self.attributes = plain(span.attributes)
        self.events = {event.name: event.time_unix_nano / 1e9 for event in span.events}
        self.state = span.trace_state
        self.resource = resource

    def __repr__(self) -> str:
        return f"{self.name} {self.attributes}"


def plain(attributes: Any) -> dict[str, Any]:
    return {pair.key: _plain(pair.value) for pair in attributes}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


class Collector:
    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.open = threading.Event()
        """Cleared, it takes a request and does not answer."""
        self.open.set()
        self.asked = 0
        self.headers: dict[str, str] = {}
        self.payloads: list[bytes] = []

    @property
    def spans(self) -> list[Seen]:
        found = []
        for payload in self.payloads:
            for each in ExportTraceServiceRequest.FromString(payload).resource_spans:
                resource = plain(each.resource.attributes)
                found += [Seen(span, resource) for scope in each.scope_spans for span in scope.spans]
        return found

    def trace(self, trace_id: str, names: Sequence[str], limit_s: float = 20.0) -> list[Seen]:
        """All of one trace in the order of `names`, which are all that it has. Processes send them when they like."""
        ends = time.monotonic() + limit_s
        while len(found := [span for span in self.spans if span.trace_id == trace_id]) < len(names):
            if time.monotonic() > ends:
                break
            time.sleep(0.05)
        found.sort(key=lambda span: (span.began, -span.ended))
        assert sorted(span.name for span in found) == sorted(names)
        return [found.pop(next(n for n, span in enumerate(found) if span.name == name)) for name in names]


@contextmanager
def collector() -> Iterator[Collector]:
    state = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.asked += 1
            body = self.rfile.read(int(self.headers["content-length"]))
            state.headers = {name.lower(): value for name, value in self.headers.items()}
            state.open.wait(30)
            if state.status == 200 and self.path == "/v1/traces":
                state.payloads.append(body)
            self.send_response(state.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            state.open.set()
            server.shutdown()
            thread.join()
