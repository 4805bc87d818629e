"""The words between the launcher, the driver that it keeps, and the seats on the nodes."""

from enum import StrEnum

import msgspec

VARIABLE = "GLLM_RAY_WANTED"
"""Of the driver's environment: not its command line, which everybody on the machine may read."""

MARK = "gllm-ray "
"""Stands before a piece of news in what the driver prints. All else there is Ray's."""

LONGEST_REASON = 500


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to run, and on which cluster."""

    address: str = "auto"
    """`HOST:PORT` of the cluster's head; `auto`: that of this machine's node, or what `RAY_ADDRESS` says."""
    workers: int | None = None
    """`None`: as many as the nodes have room for, now and later."""
    gpus: int = 1
    """Of each worker; 0: it runs on the CPU."""
    cpus: float = 1.0
    """What Ray books for each worker beside its GPUs."""
    resources: dict[str, float] = {}
    """What else it books: a node's own name for something that only some have."""
    prefix: str = "ray"
    """Of the workers' names: `ray-0`, `ray-1`."""
    program: tuple[str, ...] = ()
    """The words before the flags of a worker; empty: `gllm worker` of the Python that Ray runs on the node."""
    env: dict[str, str] = {}
    """Set for each worker, whatever its node says: its settings, `CLUSTER_SECRET` among them."""

    @property
    def need(self) -> dict[str, float]:
        """Of one worker, in Ray's names."""
        counted = {"GPU": float(self.gpus), "CPU": self.cpus, **self.resources}
        return {name: amount for name, amount in counted.items() if amount}


class State(StrEnum):
    WAITING = "waiting"
    """No node has room for it; Ray places it as soon as one has."""
    PLACED = "placed"
    ENDED = "ended"
    """It ended by itself, and is placed anew after a pause."""
    DROPPED = "dropped"
    """There is no such seat any more: its node left, and nothing waits in its stead; or the whole cluster is lost."""


class Seat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="seat"):
    """A place for one worker, as the launcher's caller sees it."""

    name: str
    state: State = State.WAITING
    node: str = ""
    """The address of the node that it is on."""
    reason: str = ""
    """Why it ended: a sentence."""


class Said(msgspec.Struct, frozen=True, tag="said"):
    """A sentence for the operator."""

    text: str


class Connected(msgspec.Struct, frozen=True, tag="connected"):
    pass


class Lacking(msgspec.Struct, frozen=True, tag="lacking"):
    """Why the driver gives up: a sentence."""

    reason: str


News = Seat | Said | Connected | Lacking


class Ended(msgspec.Struct, frozen=True):
    """How a worker ended on its node."""

    code: int
    tail: tuple[str, ...] = ()


def told(news: News) -> str:
    return MARK + msgspec.json.encode(news).decode()


def heard(line: str) -> News | None:
    _, mark, news = line.partition(MARK)  # Ray may have begun the line
    return msgspec.json.decode(news, type=News) if mark else None


def clipped(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
