"""On whose behalf a call is made, and what they may have."""

from enum import IntEnum, StrEnum

import msgspec


class Priority(IntEnum):
    """Lower goes first."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2


class Limits(msgspec.Struct, frozen=True):
    """What may be used at most: one or more; `None` is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


UNLIMITED = Limits()


class Kind(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"


class Standing(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """How one limit stands, once a request has taken its part or was refused it."""

    kind: Kind
    limit: int
    remaining: int
    reset_s: float
    """Until all of it is there again, if nothing more is taken."""
    of_model: bool = False
    """It limits this model only; otherwise all that the tenant does."""
    wait_s: float | None = None
    """This limit refused: when it may allow the same request."""


class Tenant(msgspec.Struct, frozen=True):
    name: str
    models: frozenset[str] | None = None
    """Those it may use; `None` is all."""
    weight: float = 1.0
    """Its share among those that wait, relative to others."""
    priority: Priority = Priority.NORMAL
    """What its calls have, and the highest that they may ask for."""
    limits: Limits = UNLIMITED
    model_limits: dict[str, Limits] = {}
    """Beside `limits`, for single models."""
    admin: bool = False

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


ANONYMOUS = Tenant("anonymous", priority=Priority.INTERACTIVE, admin=True)
"""Everybody, where no tenants are set."""
