"""Any server that speaks OpenAI's wire format, as an engine."""

from app.engines.http.address import Address, parse
from app.engines.http.catalogue import Catalogue
from app.engines.http.exchange import HttpExchange
from app.engines.http.limits import Limits, Timeouts
from app.engines.http.pool import Pool
from app.generation import Call, Route
from app.reliability.limit import Load
from app.reliability.watch import Watch


class HttpEngine:
    def __init__(
        self,
        base_url: str,
        *,
        watch: Watch,
        timeouts: Timeouts,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        api_key: str | None = None,
    ) -> None:
        address = self.address = parse(base_url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("An engine's API key must be printable ASCII.")
        self._watch = watch
        self._timeouts = timeouts
        self._limits = limits
        self._api_key = api_key
        self._pool = Pool(address, limits, watch.clock)
        self._catalogue = Catalogue(address, timeouts, limits, api_key)
        self._heads = {
            stream: {route: _head(address, route, accept, api_key) for route in Route}
            for stream, accept in ((False, "application/json"), (True, "text/event-stream"))
        }

    @property
    def open_connections(self) -> int:
        return self._pool.open_connections

    @property
    def idle_connections(self) -> int:
        return self._pool.idle_connections

    def open(self, call: Call) -> HttpExchange:
        request = b"%bx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
            self._heads[call.stream][call.route],
            call.id.encode(),
            b"" if call.traceparent is None else _trace(call),
            len(call.body),
            call.body,
        )
        return HttpExchange(call, request, self._pool, self._watch, self._timeouts, self._limits, self._api_key)

    async def models(self) -> dict[str, int | None]:
        return await self._catalogue.models()

    async def load(self) -> Load | None:
        return await self._catalogue.load()

    async def aclose(self) -> None:
        await self._pool.aclose()
        await self._catalogue.aclose()


def _trace(call: Call) -> bytes:
    state = f"tracestate: {call.tracestate}\r\n" if call.tracestate else ""
    return f"traceparent: {call.traceparent}\r\n{state}".encode("ascii")


def _head(address: Address, route: Route, accept: str, api_key: str | None) -> bytes:
    lines = [
        f"POST {address.prefix}{route} HTTP/1.1",
        f"host: {address.authority}",
        "content-type: application/json",
        f"accept: {accept}",
        "accept-encoding: identity",
        *([f"authorization: Bearer {api_key}"] if api_key else []),
    ]
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")
