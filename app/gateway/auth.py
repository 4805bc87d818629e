"""Who asks: from a request's head to a tenant, before its body is read."""

import hmac
import ipaddress
from collections.abc import Mapping
from hashlib import sha256
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
OPEN = PROBES | {"/", "/docs", "/openapi.json"}
METRICS = "/metrics"
ADMIN = "/admin/"

CLUSTER = Tenant("cluster", admin=True)
"""A worker, or an operator, who shows the cluster's secret."""
_COMMANDS = frozenset({"/add_worker", "/load_model", "/release_gpus"})
_COMMANDED = tuple(f"{ADMIN}{what}" for what in ("models", "workers", "swap", "adapters"))

_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")


class Door(Protocol):
    def admit(self, scope: Scope, headers: Headers) -> Tenant:
        """Who it is; whom nobody knows is refused."""
        ...

    def admit_commander(self, scope: Scope, headers: Headers) -> Tenant:
        """The same, where workers are commanded: it makes the gateway connect to addresses, and engines stop."""
        ...


def commands_workers(path: str) -> bool:
    return path.removeprefix("/v1") in _COMMANDS or path.startswith(_COMMANDED)


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

    def admit_commander(self, scope: Scope, headers: Headers) -> Tenant:
        """Who sits on this machine, also where others may ask for answers; and no page in a browser there, which any
        site may have opened: it says where it is from, or calls this machine by a name of its own."""
        at_home = _from_this_machine(scope, headers) and b"origin" not in headers and _is_asked_as_this_machine(headers)
        if not at_home:
            raise NotAllowed("Without API keys workers are commanded from this machine, or with the CLUSTER_SECRET.")
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

    def admit_commander(self, scope: Scope, headers: Headers) -> Tenant:
        tenant = self.admit(scope, headers)
        if not tenant.admin:
            raise NotAllowed("This takes the key of an admin.")
        return tenant

    def _wrong_key(self, scope: Scope) -> WrongKey | TooManyFailedLogins:
        return _failed_login(scope, self._failed_logins)


class SecretDoor:
    """Beside another door: with the cluster's secret workers are commanded from everywhere."""

    def __init__(self, door: Door, secret: str, failed_logins: FailedLogins) -> None:
        self._door = door
        self._digest = sha256(secret.encode()).digest()
        self._failed_logins = failed_logins

    def admit(self, scope: Scope, headers: Headers) -> Tenant:
        return self._door.admit(scope, headers)

    def admit_commander(self, scope: Scope, headers: Headers) -> Tenant:
        key = _presented(headers)
        if key and hmac.compare_digest(sha256(key).digest(), self._digest):
            return CLUSTER
        try:
            return self._door.admit_commander(scope, headers)
        except NotAllowed:
            if key and isinstance(refused := _failed_login(scope, self._failed_logins), TooManyFailedLogins):
                raise refused from None
            raise


def _failed_login(scope: Scope, failed_logins: FailedLogins) -> WrongKey | TooManyFailedLogins:
    """Only now is the address looked at: a right key is taken from everywhere, whoever else tries keys there."""
    client = scope.get("client")
    wait_s = failed_logins.failed(_neighbourhood(client[0]) if client else "")
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


def _is_asked_as_this_machine(headers: Headers) -> bool:
    host = headers.get(b"host", b"localhost").decode("latin-1").lower()
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    return name in ("localhost", "[::1]") or (name.startswith("127.") and name.replace(".", "").isdigit())


def _neighbourhood(address: str) -> str:
    """An IPv6 client has a whole network of addresses (/64) to try keys from; it counts as one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
