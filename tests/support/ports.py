"""Ports for the servers of tests, which bind them some time after they were chosen.

They lie below those that the kernel gives to whoever asks for any, clients among them. Every process that runs tests
has a range of its own: it keeps others out by a name in Linux' abstract socket space, which vanishes with it.
"""

import socket

FIRST, END = 10_000, 23_200
"""Ports that tests call by their number lie above."""
EACH, APART = 1_200, 10


def free_port(room: int = APART) -> int:
    """It does not come again before all others had their turn. `room`: so many from there on are free, and left alone
    for whoever counts on from it: to a second replica, or past a port that was taken meanwhile."""
    global _next
    for _ in range(EACH):
        port = _next if _next + room <= _first + EACH else _first
        free = all(map(_is_free, range(port, port + room)))
        _next = port + (room if free else APART)
        if free:
            return port
    raise RuntimeError(f"no {room} ports in a row are free from {_first} to {_first + EACH}")


def _claimed() -> tuple[socket.socket, int]:
    for first in range(FIRST, END, EACH):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0gllm-tests-{first}")
        except OSError:
            claim.close()
        else:
            return claim, first
    raise RuntimeError("too many processes run tests on this machine already")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_claim, _first = _claimed()
_next = _first
