"""Tenants for a scenario, and the file that makes a gateway know them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_urlsafe


@dataclass(frozen=True)
class Tenant:
    name: str
    admin: bool = False
    key: str = field(default_factory=lambda: f"gllm-{token_urlsafe(32)}")

    def entry(self) -> str:
        """As it stands in the file: the digest of its key, never the key."""
        digest = sha256(self.key.encode()).hexdigest()
        admin = str(self.admin).lower()
        return f'[[tenant]]\nname = "{self.name}"\nadmin = {admin}\n\n[[tenant.key]]\nsha256 = "{digest}"\n'


def file_of(tenants: Sequence[Tenant]) -> str:
    return "\n".join(tenant.entry() for tenant in tenants)
