"""Whose key is this?"""

import hmac
from collections.abc import Callable
from datetime import date

from app.tenant import Tenant
from app.tenants.keys import digest_of
from app.tenants.roster import Key, Roster

_NOBODY = bytes(32)


class Directory:
    """Knows keys by their whole digests only, so what a comparison's time tells is of no use to who tries keys."""

    def __init__(self, roster: Roster, today: Callable[[], date]) -> None:
        self._today = today
        self.replace(roster)

    def replace(self, roster: Roster) -> None:
        self._roster = roster
        self._keys: dict[bytes, Key] = {key.digest: key for key in roster.keys}

    @property
    def roster(self) -> Roster:
        return self._roster

    def find(self, key: bytes) -> Tenant | None:
        digest = digest_of(key)
        known = self._keys.get(digest)
        right = hmac.compare_digest(_NOBODY if known is None else known.digest, digest)
        if known is None or not right:
            return None
        return None if known.expires is not None and known.expired(self._today()) else known.tenant
