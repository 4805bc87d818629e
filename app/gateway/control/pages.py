"""What operators are told of workers and changes of models."""

from collections.abc import Iterable, Mapping

import msgspec

from app.clock import Clock
from app.cluster.control import Order, Status
from app.cluster.member import Member
from app.cluster.members import Members
from app.cluster.progress import Account, Outcome, Step
from app.cluster.swap import Swap


class Row(Status, frozen=True, kw_only=True, omit_defaults=True):
    """A worker as the gateway knows it: its own words, and what is seen of it from here. One that cannot be reached
    has said them some time ago."""

    address: str = ""
    reachable: bool = True
    running: int | None = None
    """Calls of this gateway, of all its processes together; and so many it may get at once:"""
    slots: int | None = None
    since_s: float | None = None
    """For how long it has been in its state."""


class Share(msgspec.Struct, frozen=True):
    """What one process has to do with a worker."""

    running: int
    slots: int


class Latest(msgspec.Struct, frozen=True):
    """The change of models that one process carries out, or did last."""

    began: float
    """By the machine's clock, which its processes have in common."""
    account: Account


class Workers(msgspec.Struct, frozen=True):
    workers: tuple[Row, ...]


class Served(msgspec.Struct, frozen=True):
    name: str
    state: str
    """`ready`, `coming`, `leaving`, or `unavailable`: known, and nobody answers."""
    workers: tuple[str, ...]
    parent: str | None
    """The model that it is an adapter of."""
    max_model_len: int | None


class Models(msgspec.Struct, frozen=True):
    models: tuple[Served, ...]
    current: Order | None
    """What all workers were told last, and what one gets that comes with nothing."""
    swap: Account | None


class News(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a change of models: what has changed, and how all stand."""

    state: str
    """`running`, and at last `done` or `failed`."""
    id: str
    worker: str = ""
    step: str = ""
    part: float | None = None
    said: str = ""
    workers: tuple[Row, ...] = ()
    message: str = ""
    tail: tuple[str, ...] = ()


def row_of(member: Member, clock: Clock) -> Row:
    assert member.status is not None
    replica = member.replica
    fields = {name: getattr(member.status, name) for name in Status.__struct_fields__}
    return Row(
        **fields | {"reason": member.status.reason if member.present else member.reason},
        address=member.address,
        reachable=member.present,
        running=None if replica is None else replica.running,
        slots=None if replica is None else replica.slots,
        since_s=round(clock() - member.since, 1),
    )


def shares_of(members: Iterable[Member]) -> dict[str, Share]:
    """By the workers' addresses."""
    replicas = ((each.address, each.replica) for each in members)
    return {address: Share(replica.running, replica.slots) for address, replica in replicas if replica is not None}


def together(row: Row, others: Iterable[Mapping[str, Share]]) -> Row:
    """With what other processes have to do with it."""
    shares = [each[row.address] for each in others if row.address in each]
    return msgspec.structs.replace(
        row,
        running=_sum(row.running, [each.running for each in shares]),
        slots=_sum(row.slots, [each.slots for each in shares]),
    )


def _sum(own: int | None, others: list[int]) -> int | None:
    return sum(others, own or 0) if others else own


def rows_of(members: Iterable[Member], clock: Clock) -> tuple[Row, ...]:
    return tuple(row_of(each, clock) for each in members)


def news_of(swap: Swap, step: Step | None, members: Members, clock: Clock) -> News:
    names = swap.feed.steps.keys()
    rows = rows_of((each for each in members if each.name in names), clock)
    if step is not None:
        return News(
            state="running",
            id=swap.id,
            worker=step.worker,
            step=step.step,
            part=step.part,
            said=step.said,
            workers=rows,
        )
    account = swap.account()
    state = "done" if account.outcome is Outcome.DONE else "failed"
    return News(state=state, id=swap.id, worker=account.worker, workers=rows, message=account.reason, tail=account.tail)
