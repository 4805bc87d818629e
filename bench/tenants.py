"""Tenants for a scenario, and the file that makes a gateway know them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_urlsafe


@dataclass(frozen=True)
class Tenant:
    name: str
    admin: bool = False
    limits: dict[str, int] = field(default_factory=dict)
    """`requests_per_minute`, `tokens_per_minute`, `concurrent`."""
    key: str = field(default_factory=lambda: f"gllm-{token_urlsafe(32)}")

    def entry(self) -> str:
        """As it stands in the file: the digest of its key, never the key."""
        fields = {"name": f'"{self.name}"', "admin": str(self.admin).lower(), **self.limits}
        lines = [f"{name} = {value}" for name, value in fields.items()]
        digest = sha256(self.key.encode()).hexdigest()
        return "\n".join(["[[tenant]]", *lines, "", "[[tenant.key]]", f'sha256 = "{digest}"', ""])


def file_of(tenants: Sequence[Tenant]) -> str:
    return "\n".join(tenant.entry() for tenant in tenants)
