"""A socket to listen on, or the sentence that says why there is none."""

import socket
from dataclasses import dataclass, replace
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL

BACKLOG = 4_096


class CannotListen(Exception):
    """The text is a sentence for the person who starts the gateway."""


class PortTaken(CannotListen):
    """Another port would do."""


@dataclass(frozen=True)
class Address:
    """An address and the settings it comes from."""

    host: str
    port: int
    host_setting: str
    port_remedy: str
    """How another port is chosen, up to its number."""


def shared(at: Address) -> socket.socket:
    """The address is held for processes of ours, each of which listens on it; or it is refused, because somebody
    listens there already. Nothing arrives at what is held: it does not listen itself."""
    with listener(at) as alone:
        port = alone.getsockname()[1]
    return sharing(replace(at, port=port))


def sharing(at: Address) -> socket.socket:
    """Ours beside other processes of the same user that say so too. From when it listens it gets a part of the
    connections; hence not before somebody is there to serve them."""
    return _bound(at, share=True)


def listener(at: Address) -> socket.socket:
    """The address is ours from now on; or it is refused."""
    taken = _bound(at)
    try:
        taken.listen(BACKLOG)
    except OSError as error:
        taken.close()
        raise _refusal(at, error) from None
    return taken


def _bound(at: Address, *, share: bool = False) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            at.host, at.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(f"{at.host_setting}={at.host} is not an address: {error.strerror}.") from None
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise _refusal(at, error) from None
    return taken


def _refusal(at: Address, error: OSError) -> CannotListen:
    return (PortTaken if error.errno == EADDRINUSE else CannotListen)(_why_not(at, error))


def _why_not(at: Address, error: OSError) -> str:
    match error.errno:
        case code if code == EADDRINUSE:
            other = at.port + 1 if at.port < 65_535 else 0
            return f"Port {at.port} on {at.host} is taken. Stop what uses it, or {at.port_remedy}{other}"
        case code if code == EACCES:
            return f"Port {at.port} is reserved to the system's administrator. Choose one above 1023."
        case code if code == EADDRNOTAVAIL:
            return f"{at.host_setting}={at.host} is not an address of this machine."
    return f"Cannot listen on {at.host}:{at.port}: {error.strerror}."
