"""A client below HTTP: it speaks ASGI, and can hang up or stop reading at any point."""

import asyncio
import json
from typing import Any

from app.gateway.edge import Scope

JSON = [(b"content-type", b"application/json")]


class Exchange:
    """One request to an ASGI app and what came of it."""

    def __init__(
        self,
        path: str,
        body: bytes | dict[str, Any] = b"",
        *,
        method: str = "POST",
        headers: list[tuple[bytes, bytes]] | None = None,
        body_parts: list[bytes] | None = None,
        server: tuple[str, int | None] = ("127.0.0.1", 8000),
        client: tuple[str, int] | None = ("127.0.0.1", 50_000),
        hang_up_after: int | None = None,
        stop_reading_after: int | None = None,
    ) -> None:
        whole = json.dumps(body).encode() if isinstance(body, dict) else body
        self._parts = [whole] if body_parts is None else body_parts
        self._hang_up_after = hang_up_after
        self._stop_reading_after = stop_reading_after
        self._gone = asyncio.Event()
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": list(JSON if headers is None else headers),
            "server": server,
            "client": client,
        }
        self.status = 0
        self.headers: dict[str, str] = {}
        self.blocks: list[bytes] = []
        self.ended = False
        self.parts_taken = 0

    @property
    def body(self) -> bytes:
        return b"".join(self.blocks)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json()["error"]
        assert set(found) == {"message", "type", "param", "code"}
        assert self.headers["x-request-id"]
        assert self.headers["content-type"] == "application/json"
        return found

    def events(self) -> list[Any]:
        """What each event carries; `[DONE]` as itself."""
        texts = [one.removeprefix("data: ") for one in self.body.decode().split("\n\n") if one]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]

    def events_numbered(self) -> list[tuple[int, Any]]:
        """Of a keyed stream: each event's `id` (0 where it has none), and what it carries."""
        found = []
        for one in self.body.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in one.split("\n") if line)
            if lines:
                data = lines["data"]
                found.append((int(lines.get("id", 0)), data if data == "[DONE]" else json.loads(data)))
        return found

    def text(self) -> str:
        chunks = [event for event in self.events() if event != "[DONE]" and event.get("choices")]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    def hang_up(self) -> None:
        self._gone.set()

    async def run(self, app: Any) -> "Exchange":
        await app(self.scope, self._receive, self._send)
        return self

    async def _receive(self) -> dict[str, Any]:
        if self.parts_taken < len(self._parts):
            self.parts_taken += 1
            more = self.parts_taken < len(self._parts)
            return {"type": "http.request", "body": self._parts[self.parts_taken - 1], "more_body": more}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            assert not self.status, "an answer begins once"
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert self.status
            assert not self.ended, "nothing follows the end"
            if message.get("body"):
                self.blocks.append(message["body"])
            self.ended = not message.get("more_body", False)
        if self._hang_up_after is not None and len(self.body) >= self._hang_up_after:
            self.hang_up()
        if self._stop_reading_after is not None and len(self.body) >= self._stop_reading_after:
            await asyncio.Event().wait()
