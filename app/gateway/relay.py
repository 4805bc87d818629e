"""One answer on its way to its client, whichever replicas make it."""

from app.errors import EngineError
from app.generation import Call, Usage
from app.wire.answers import AnswerStream, stream_reader
from app.wire.seam import Seam
from app.wire.transcript import Transcript


class Relay:
    __slots__ = ("_joined_at", "_seam", "_transcript", "call", "interrupted", "left", "missing", "reader")

    def __init__(self, call: Call) -> None:
        self.call = call
        """As it is asked of the next replica."""
        self.interrupted: EngineError | None = None
        """What first ended the stream before its end. If nobody goes on with it, this is what its client is told."""
        self.left = ""
        """The replica that it was interrupted at, until another one has begun to go on with it."""
        self.missing = b""
        """The events that did not come, where these alone are missing."""
        self.reader: AnswerStream
        """Of the whole answer."""
        self._transcript: Transcript | None = None
        self._seam: Seam | None = None
        self._joined_at = 0

    @property
    def guessed(self) -> bool:
        """Who goes on with the stream does not tell what that uses."""
        return self._seam is not None and not self._seam.counted and self.reader.events > self._joined_at

    @property
    def usage(self) -> Usage | None:
        """Of the whole answer, as far as it is known now."""
        if self._seam is not None and self.guessed:
            return self._seam.guess(self.reader.events - self._joined_at)
        return self.reader.usage

    def begin(self) -> AnswerStream:
        """A replica has begun. What another one may have sent before is nothing, unless the client has seen of it."""
        if self.interrupted is None:
            self.reader = stream_reader(self.call)
            self._transcript = Transcript(self.call) if self.call.continuable else None
        return self.reader

    def read(self, block: bytes) -> bytes:
        """What of `block` the client gets, possibly nothing."""
        if self._transcript is None:
            return self.reader.read(block)
        if self._seam is not None:
            block = self._seam.join(block)
        shown = self.reader.read(block)
        self._transcript.add(block, shown)
        return shown

    def break_off(self, replica: str, error: EngineError) -> bool:
        """The client has read some of it, and no more comes from this replica. Whether another one can go on: `call`
        asks for the rest then."""
        self.interrupted = self.interrupted or error
        self.left = self.left or replica
        remainder = None if self._transcript is None else self._transcript.remainder()
        if isinstance(remainder, Seam):
            self._seam, self._joined_at, self.call = remainder, self.reader.events, remainder.call
            return True
        self._seam, self.missing = None, remainder or b""
        return False
