"""What one run has answered so far, and those who read it while it grows.

Up to its caps a recording keeps everything, and the run goes at its own pace. Past them it is a window that moves
with the slowest reader, who from then on holds up the run; what it lost nobody can have any more.
"""

import asyncio
import math
from types import TracebackType
from typing import Self

from app.errors import DeadlinePassed, GatewayError, InvalidRequest, NotReplayable
from app.reliability.watch import Watch

BLOCK_BYTES = 64 * 1024
"""Given to a reader at once: one that catches up takes it in pieces, each within the write time limit."""


class Recording:
    """Frames in order. A frame is what is never torn: one event, or a whole body."""

    def __init__(self, max_bytes: int, max_frames: int) -> None:
        self.complete = False
        """All has been said; what is left is to keep it. Nobody is too late for that any more."""
        self.ended = False
        self.error: GatewayError | None = None
        self.kept = True
        """All of it is here. Once false, it stays so."""
        self.replica = ""
        self.attempts = 0
        """Who makes it, and at which attempt."""
        self.request = ""
        """For which request."""
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._frames: list[bytes] = []
        self._bytes = 0
        self._gone = 0
        self._readers: dict[Reader, None] = {}
        """A set that keeps its order, so that a run can be repeated."""
        self._room: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        """How many frames there were."""
        return self._gone + len(self._frames)

    @property
    def frames(self) -> list[bytes]:
        return self._frames

    @property
    def readers(self) -> int:
        return len(self._readers)

    def since(self, start: int, max_bytes: int) -> tuple[int, list[bytes]]:
        """Some frames after the first `start`, or after those that are gone; and how many came before them."""
        start = max(start, self._gone)
        end = self._end_of(start, max_bytes)
        return start, self._frames[start - self._gone : end - self._gone]

    def add(self, frames: list[bytes]) -> None:
        self._frames += frames
        self._bytes += sum(map(len, frames))
        self.kept = self.kept and not self._is_full
        self._wake()

    async def room(self) -> None:
        """Until there is some. At once below the caps; past them when every reader has had enough."""
        while self._is_full:
            self._forget()
            if self._is_full:
                self._room = asyncio.get_running_loop().create_future()
                await self._room

    def end(self, error: GatewayError | None = None) -> None:
        """No more will come: all was said, or `error` happened."""
        self.ended = True
        self.error = error
        self._wake()

    def reader(self, seen: int, expires_at: float, watch: Watch) -> "Reader":
        """One who has `seen` so many frames already."""
        if seen < self._gone:
            raise NotReplayable
        return Reader(self, seen, expires_at, watch)

    # --- between readers and the run ------------------------------------------------------------------------------

    def joined(self, reader: "Reader") -> None:
        self._readers[reader] = None

    def left(self, reader: "Reader") -> None:
        self._readers.pop(reader, None)
        self.went_on()

    def went_on(self) -> None:
        """A reader did, or went away: there may be room."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def block(self, start: int) -> tuple[bytes, int]:
        """What comes after the first `start` frames, in one piece, and how many have been given with it."""
        _, frames = self.since(start, BLOCK_BYTES)
        return b"".join(frames), start + len(frames)

    def _end_of(self, start: int, max_bytes: int) -> int:
        """Where a piece ends that begins there: with the frame that makes it large enough."""
        end = start
        size = 0
        while end < len(self) and size < max_bytes:
            size += len(self._frames[end - self._gone])
            end += 1
        return end

    @property
    def _is_full(self) -> bool:
        return self._bytes > self._max_bytes or len(self._frames) > self._max_frames

    def _forget(self) -> None:
        """The oldest that every reader has had. While nobody reads nothing goes: somebody may come back for it."""
        had_by_all = min((reader.at for reader in self._readers), default=0) - self._gone
        count = 0
        size = self._bytes
        while count < had_by_all and (size > self._max_bytes or len(self._frames) - count > self._max_frames):
            size -= len(self._frames[count])
            count += 1
        del self._frames[:count]
        self._bytes = size
        self._gone += count

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()


class Reader:
    """As a block: who is in it is counted. Gives up alone when its own time is over."""

    def __init__(self, recording: Recording, at: int, expires_at: float, watch: Watch) -> None:
        self.at = at
        self.due = expires_at
        self._recording = recording
        self._watch = watch
        self._news: asyncio.Future[None] | None = None
        self._late = False

    def __enter__(self) -> Self:
        self._recording.joined(self)
        self._watch.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._watch.discard(self)
        self._recording.left(self)

    async def next(self) -> bytes | None:
        """What has come since the last time, or `None` when all was read. Raises what the run ended with."""
        recording = self._recording
        while True:
            if self._late and not recording.complete:
                raise DeadlinePassed
            if self.at < len(recording):
                block, self.at = recording.block(self.at)
                recording.went_on()
                return block
            if recording.ended:
                self._check_end()
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news

    async def whole(self) -> bytes | None:
        """All of it, and nothing unless it ends well."""
        parts = []
        while (part := await self.next()) is not None:
            parts.append(part)
        return b"".join(parts) if parts else None

    def _check_end(self) -> None:
        if self._recording.error is not None:
            raise self._recording.error.with_traceback(None)  # one error, raised to many
        if self.at > len(self._recording):
            raise InvalidRequest("This stream has not that many events.", param="Last-Event-ID", code="invalid_header")

    def wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def expire(self, now: float) -> None:
        self.due = math.inf
        self._late = True
        self.wake()
