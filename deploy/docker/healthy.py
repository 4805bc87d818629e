"""A container's health check: `python -IS healthy.py PORT PATH` ends with 0 if that page of this machine is a 200.

It runs every ten seconds in every container, so it starts without `site` and takes the bare socket.
"""

import _socket
import sys

SECONDS = 2.0
ENOUGH = 64


def is_well(port: int, path: str) -> bool:
    asking = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    asking.settimeout(SECONDS)
    try:
        asking.connect(("127.0.0.1", port))
        asking.sendall(b"GET %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % path.encode())
        return asking.recv(ENOUGH).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False
    finally:
        asking.close()


if __name__ == "__main__":
    sys.exit(not is_well(int(sys.argv[1]), sys.argv[2]))
