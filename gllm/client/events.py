"""Server-sent events out of bytes as they arrive, and how far a stream has come."""

from dataclasses import dataclass

from gllm.client.errors import BrokenAnswer, RemoteError, StreamBroken, of_event

DONE = b"[DONE]"


@dataclass(frozen=True)
class Event:
    number: int | None
    data: bytes


class EventReader:
    """Of one connection. An event that is torn when it ends never was."""

    def __init__(self) -> None:
        self._torn = b""
        self._number: int | None = None
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[Event]:
        """All that are whole now."""
        events: list[Event] = []
        *lines, self._torn = (self._torn + received).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self._data.append(value)
            elif name == b"id":
                self._number = int(value) if value.isdigit() else None
            elif not name and not value and self._data:
                events.append(Event(self._number, b"\n".join(self._data)))
                self._number, self._data = None, []
        return events


class Progress:
    """What of a stream its reader has, over all the connections that it takes."""

    def __init__(self) -> None:
        self.seen = 0
        """The number of the last event. Our gateway numbers those of a keyed stream from 1."""
        self.ended = False
        self.failure: RemoteError | None = None
        """The stream's last word; due when what came before it is read."""
        self._unnumbered = False
        self._request_id: str | None = None
        self._reader = EventReader()

    def opened(self, status: int, content_type: str, request_id: str | None) -> None:
        """A connection answers. Raises if it is not with a stream."""
        if not content_type.startswith("text/event-stream"):
            raise BrokenAnswer(
                f"A stream was asked for, and {content_type or 'something else'} came.",
                status=status,
                request_id=request_id,
                retryable=True,
            )
        self._request_id = request_id
        self._reader = EventReader()

    @property
    def over(self) -> bool:
        return self.ended or self.failure is not None

    @property
    def resumable(self) -> bool:
        return not self._unnumbered

    def take(self, received: bytes) -> list[bytes]:
        """What of it is new, without its end. After the end nothing is."""
        fresh: list[bytes] = []
        for event in self._reader.feed(received):
            if self.over:
                break
            failure = of_event(event.data, self._request_id)
            if failure is not None:
                self.failure = failure
            elif self._is_next(event):
                if event.data == DONE:
                    self.ended = True
                else:
                    fresh.append(event.data)
        return fresh

    def broken(self, error: RemoteError | None = None) -> RemoteError:
        """The connection is gone before the end: the error that says so, and whether going on can help."""
        if error is None:
            error = StreamBroken("The stream broke off.", request_id=self._request_id, retryable=True)
        error.retryable = error.retryable and self.resumable
        return error

    def _is_next(self, event: Event) -> bool:
        """Not one that is there already. A gap would be text that is lost without a word."""
        if event.number is None:
            if self.seen:
                self.failure = self._lost("An event of the stream has no number.")
                return False
            self._unnumbered = True
            return True
        if event.number <= self.seen:
            return False
        if event.number != self.seen + 1:
            self.failure = self._lost(f"The stream went on with event {event.number} after {self.seen}.")
            return False
        self.seen = event.number
        return True

    def _lost(self, message: str) -> RemoteError:
        return BrokenAnswer(message, request_id=self._request_id)
