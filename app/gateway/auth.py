"""Who asks: from a request's head to a tenant, before its body is read."""

import ipaddress
from collections.abc import Mapping
from typing import Any, Protocol

from app.errors import MissingKey, NotAllowed, TooManyFailedLogins, WrongKey
from app.reliability.failed_logins import FailedLogins
from app.tenant import ANONYMOUS, Tenant
from app.tenants.directory import Directory

Scope = Mapping[str, Any]
Headers = Mapping[bytes, bytes]

TENANT = "gllm.tenant"
"""Where endpoints behind the edge find in the scope who asks."""

NOBODY = Tenant("", models=frozenset())
"""Somebody without a key, where none is needed: is told what is no secret."""

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
PROBES = frozenset({"/livez", "/readyz", "/health"})
"""What a load balancer may ask from anywhere."""
OPEN = PROBES | {"/", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
METRICS = "/metrics"
ADMIN = "/admin/"

_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")


class Door(Protocol):
    def admit(self, scope: Scope, headers: Headers) -> Tenant:
        """Who it is; whom nobody knows is refused."""
        ...


def check_allowed(tenant: Tenant, path: str) -> None:
    if not tenant.admin and (path == METRICS or path.startswith(ADMIN)):
        raise NotAllowed("This takes the key of an admin.")


class OpenDoor:
    """Without tenants: everybody on this machine; listening wider is said deliberately or not done."""

    def __init__(self, *, beyond_loopback: bool) -> None:
        self._beyond_loopback = beyond_loopback

    def admit(self, scope: Scope, headers: Headers) -> Tenant:
        if self._beyond_loopback or scope["path"] in PROBES:
            return ANONYMOUS
        server = scope.get("server")
        if server is not None and server[1] is not None and server[0] not in LOOPBACK:
            raise NotAllowed(
                "Without API keys this gateway answers on its own machine only (see TENANTS_FILE, ALLOW_ANONYMOUS)."
            )
        return ANONYMOUS


class KeyedDoor:
    """With tenants: whatever is not open needs a key, paths that do not exist too."""

    def __init__(self, directory: Directory, failed_logins: FailedLogins) -> None:
        self._directory = directory
        self._failed_logins = failed_logins

    def admit(self, scope: Scope, headers: Headers) -> Tenant:
        path: str = scope["path"]
        if path in OPEN:
            return ANONYMOUS if _from_this_machine(scope, headers) else NOBODY
        key = _presented(headers)
        if not key:
            if path == METRICS and _from_this_machine(scope, headers):
                return ANONYMOUS
            raise MissingKey
        tenant = self._directory.find(key)
        if tenant is None:
            raise self._wrong_key(scope)
        return tenant

    def _wrong_key(self, scope: Scope) -> WrongKey | TooManyFailedLogins:
        """Only now is the address looked at: a right key is taken from everywhere, whoever else tries keys there."""
        client = scope.get("client")
        wait_s = self._failed_logins.failed(_neighbourhood(client[0]) if client else "")
        return TooManyFailedLogins(retry_after=wait_s) if wait_s else WrongKey()


def _presented(headers: Headers) -> bytes:
    """The key that was sent, if one was. Clients of Anthropic's API send it in a header of its own."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        key = headers.get(b"x-api-key", b"")
    return key.strip()


def _from_this_machine(scope: Scope, headers: Headers) -> bool:
    """By itself, not through a proxy that stands here and asks for others."""
    client = scope.get("client")
    return client is not None and client[0] in LOOPBACK and not any(name in headers for name in _FORWARDED)


def _neighbourhood(address: str) -> str:
    """An IPv6 client has a whole network of addresses (/64) to try keys from; it counts as one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
