"""Where the gateway of a cluster listens: GLLM's was open to everybody, ours is as open as its keys allow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.gateway.listener import Address, listener
from app.settings import Settings
from app.settings.reading import read
from app.settings.tree import branches, names_of
from app.settings.values import is_loopback

EVERYWHERE = "0.0.0.0"


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


def _given() -> dict[str, object]:
    return read([name for branch in branches() for name in names_of(branch)], None, ".env", {})
