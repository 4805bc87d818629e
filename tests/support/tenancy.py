"""A tenants file whose keys need no command to be made: each is its tenant's name with a word before it."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.tenants.files import hash_of

ADMIN = "operators"


def write_tenants(file: Path, tenants: Mapping[str, Mapping[str, int]]) -> None:
    """Those with their limits, and an admin."""
    tables = [_table(name, limits) for name, limits in tenants.items()]
    file.write_text("\n".join([*tables, _table(ADMIN, {"admin": True})]))


def signed(tenant: str, **headers: str) -> dict[str, str]:
    return {"authorization": f"Bearer {_key(tenant)}", **headers}


def _key(tenant: str) -> str:
    return f"gllm-{tenant}-canary"


def _table(name: str, fields: Mapping[str, int]) -> str:
    lines = [f"{field} = {json.dumps(value)}" for field, value in fields.items()]
    return "\n".join(
        ["[[tenant]]", f'name = "{name}"', *lines, "[[tenant.key]]", f'sha256 = "{hash_of(_key(name))}"\n']
    )
