"""What is asked of a store of answers, and the words in which it is answered.

A key is free, or claimed by the one run that answers it, or answered. A store sees to it that no two runs hold the same
key. Everything here raises `StoreDown` if it cannot be done in time; nothing waits for a store without a limit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from hashlib import sha256
from typing import Protocol

import msgspec

from app import errors
from app.errors import GatewayError
from app.generation import Call, Route
from app.reliability.recording import Recording
from app.tenant import Tenant


class Key(msgspec.Struct, frozen=True):
    scope: str
    """Whose key it is, and where. Only its digest leaves the process."""
    fingerprint: bytes
    """What it was used for."""

    @classmethod
    def of(cls, call: Call) -> "Key":
        return cls(cls.scope_of(call.tenant, call.route, call.key or ""), call.fingerprint)

    @staticmethod
    def scope_of(tenant: Tenant, route: Route, key: str) -> str:
        return sha256(msgspec.json.encode((tenant.name, route, key))).hexdigest()


class Kept(msgspec.Struct, frozen=True):
    """A complete one, as it is kept."""

    replica: str
    attempts: int
    frames: list[bytes] | None
    """`None`: too large to be kept. The key stays used, all the same."""
    request: str = ""
    """The one that it was made for."""

    @classmethod
    def of(cls, recording: Recording) -> "Kept":
        frames = recording.frames if recording.kept else None
        return cls(recording.replica, recording.attempts, frames, recording.request)


class Batch(msgspec.Struct, frozen=True):
    """Some of what an answer elsewhere consists of, in order."""

    start: int
    """How many frames came before."""
    frames: list[bytes]
    replica: str = ""
    attempts: int = 0
    ended: bool = False
    failure: "Failure | None" = None
    request: str = ""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error on its way to another gateway."""

    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None

    @classmethod
    def of(cls, error: GatewayError) -> "Failure":
        return cls(type(error).__name__, error.message, error.param, error.code, error.retry_after)

    @property
    def error(self) -> GatewayError:
        """The same again. A gateway of another version may know errors that this one does not."""
        kind = getattr(errors, self.kind, errors.EngineFailed)
        return kind(self.message, param=self.param, code=self.code, retry_after=self.retry_after)


class OwnerGone(Exception):
    """The gateway that answered has died: the key is free, and what it has said may be all there ever is."""


class Claim(Protocol):
    """The key is ours. Held until `finish` or `release`."""

    @property
    def followed(self) -> bool:
        """Somebody reads along elsewhere."""
        ...

    def begin(self, recording: Recording, on_lost: Callable[[], None]) -> None:
        """Those who follow from elsewhere get what is recorded, soon after it is.

        `on_lost`: somebody else has the key now. It takes a store that could not be reached for a whole lease.
        """
        ...

    async def finish(self, recording: Recording) -> None:
        """Keep the answer. May be tried again after `StoreDown`: the key stays ours."""
        ...

    async def release(self, error: GatewayError) -> None:
        """Free the key; those who follow get `error`."""
        ...


class Elsewhere(ABC):
    """Another gateway answers, and we may read along."""

    @abstractmethod
    async def next(self) -> Batch:
        """Raises `OwnerGone` when that gateway is."""


class AnswerStore(Protocol):
    async def claim(self, key: Key) -> Claim | Kept | Elsewhere:
        """Raises `KeyReused` if the key was used for something else."""
        ...

    async def find(self, key: Key) -> Kept | Elsewhere | None:
        """The same without claiming it."""
        ...

    async def run(self) -> None:
        """What is to be done beside, for as long as the gateway lives."""
        ...

    async def aclose(self) -> None: ...
