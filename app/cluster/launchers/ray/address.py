"""Where a Ray cluster is, and whether anybody is there: Ray itself takes most of a minute to find out."""

import asyncio
import os
from collections.abc import Mapping

KNOCK_S = 3.0

AUTO = "auto"
"""The cluster of this machine's own node; Ray finds it."""


class NoCluster(Exception):
    """The text is a sentence."""


def resolved(address: str, environment: Mapping[str, str]) -> str:
    return environment.get("RAY_ADDRESS") or AUTO if address == AUTO else address


async def knock(address: str) -> None:
    """Returns where something listens; raises `NoCluster`."""
    if address == AUTO:
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65_535:
        raise NoCluster(f"{address} is no address of a Ray cluster: give HOST:PORT of its head, or auto.")
    try:
        async with asyncio.timeout(KNOCK_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        raise NoCluster(f"No Ray cluster answers at {address} within {KNOCK_S:g} s.") from None
    except OSError as error:
        raise NoCluster(f"No Ray cluster answers at {address}: {_why(error)}.") from None
    writer.close()


def _why(error: OSError) -> str | None:
    """asyncio's own text repeats the address; that of a name which is not known is fine."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
