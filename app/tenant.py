"""On whose behalf a call is made, and what they may have."""

from enum import IntEnum

import msgspec


class Priority(IntEnum):
    """Lower goes first."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2


class Limits(msgspec.Struct, frozen=True):
    """What may be used at most; `None` is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


class Tenant(msgspec.Struct, frozen=True):
    name: str
    models: frozenset[str] | None = None
    """Those it may use; `None` is all."""
    weight: float = 1.0
    """Its share among those that wait, relative to others."""
    priority: Priority = Priority.NORMAL
    """What its calls have, and the highest that they may ask for."""
    limits: Limits = Limits()
    model_limits: dict[str, Limits] = {}
    """Beside `limits`, for single models."""
    admin: bool = False

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


ANONYMOUS = Tenant("anonymous", priority=Priority.INTERACTIVE, admin=True)
"""Everybody, where no tenants are set."""
