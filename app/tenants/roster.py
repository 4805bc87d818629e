"""The tenants and their keys, as they stand in the file."""

from datetime import date

import msgspec

from app.tenant import Tenant


class Key(msgspec.Struct, frozen=True):
    digest: bytes
    tenant: Tenant
    label: str = ""
    created: date | None = None
    expires: date | None = None
    """The first day (UTC) on which it is not taken any more."""

    def expired(self, today: date) -> bool:
        return self.expires is not None and today >= self.expires


class Roster(msgspec.Struct, frozen=True):
    tenants: tuple[Tenant, ...] = ()
    keys: tuple[Key, ...] = ()
