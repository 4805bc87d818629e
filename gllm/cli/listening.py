"""Where the gateway of a cluster listens: GLLM's was open to everybody, ours is as open as its keys allow."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.cluster.launchers.plan import WILDCARDS
from app.gateway.listener import Address, listener
from app.settings import Settings
from app.settings.reading import read
from app.settings.tree import branches, names_of
from app.settings.values import is_loopback

EVERYWHERE = "0.0.0.0"
SOMEWHERE = "192.0.2.1"
"""An address beyond this network that nobody has."""


@dataclass(frozen=True)
class Listening:
    settings: Settings
    kept_in: bool
    """Nobody has said where, and nothing protects it: so it is for this machine alone."""

    @property
    def host(self) -> str:
        return self.settings.listen.host

    @property
    def keyed(self) -> bool:
        return self.settings.listen.tenants_file is not None

    @contextmanager
    def port(self) -> Iterator[int]:
        """Ours within the block; the gateway itself binds it a moment later."""
        listen = self.settings.listen
        with listener(Address(listen.host, listen.port, "--ip", "add: --port ")) as taken:
            yield taken.getsockname()[1]


def listening(ip: str | None, port: int) -> Listening:
    """Raises `BadSetting`, also if that would let everybody in by accident."""
    flags: dict[str, Any] = {"port": port, "engine_type": "workers", "engine_command": ""}
    if ip is not None or "HOST" in _given():
        return Listening(Settings.load(**flags, host=ip), kept_in=False)
    inside = Settings.load(**flags)
    protected = inside.listen.allow_anonymous or inside.listen.tenants_file is not None
    if protected and is_loopback(inside.listen.host):
        return Listening(Settings.load(**flags, host=EVERYWHERE), kept_in=False)
    return Listening(inside, kept_in=True)


def address_for_others(host: str, towards: str) -> str:
    """What a machine at `towards` (HOST:PORT) is to say for this one. Nothing is sent to find out."""
    if host not in WILDCARDS:
        return host
    other = towards.rpartition(":")[0] or SOMEWHERE
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            found: str = probe.getsockname()[0]
    except OSError:
        return socket.gethostname()
    return found


def _given() -> dict[str, object]:
    return read([name for branch in branches() for name in names_of(branch)], None, ".env", {})
