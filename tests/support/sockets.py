"""A client that speaks in plain bytes and hangs up when it likes."""

import json
import select
import socket
import struct
from typing import Any


def request(path: str, body: bytes | dict[str, Any] = b"", *headers: str, method: str = "POST") -> bytes:
    """One request as it stands on the wire. Headers given by name replace those that a good client sends."""
    payload = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = {"host": "x", "content-type": "application/json", "content-length": str(len(payload))}
    lines |= dict(header.split(": ", 1) for header in headers)
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items()), "", ""]
    return "\r\n".join(head).encode() + payload


class Raw:
    """A blocking connection. Leaving the block closes it."""

    def __init__(self, port: int, limit_s: float = 10, takes: int | None = None) -> None:
        """`takes`: at most about so many bytes at once."""
        self.socket = socket.socket()
        self.socket.settimeout(limit_s)
        if takes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, takes)  # heeded before connecting only
        self.socket.connect(("127.0.0.1", port))
        self._seen = b""

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, data: bytes) -> "Raw":
        self.socket.sendall(data)
        return self

    def reset(self) -> None:
        """Gone without a goodbye: RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def heard_from(self) -> bool:
        """The other side has said something, or has hung up."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`, or what came before the end."""
        while mark not in self._seen and (part := self.socket.recv(65_536)):
            self._seen += part
        found, _, self._seen = self._seen.partition(mark)
        return found + mark if _ else found

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, and the body as far as a content-length goes."""
        head = self.until(b"\r\n\r\n").decode("latin-1")
        status, *lines = head.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers.get("content-length", 0))
        while len(self._seen) < size and (part := self.socket.recv(65_536)):
            self._seen += part
        body, self._seen = self._seen[:size], self._seen[size:]
        return int(status.split()[1]), headers, body

    def closed(self) -> bool:
        """The other side ends the connection, politely or not, within the limit."""
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True
