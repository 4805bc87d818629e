"""What orders mean to a worker: the engine that they ask for, its names, and what is plainly wrong with them."""

import os
from dataclasses import dataclass, replace

from app.cluster.control import Order
from app.cluster.launchers.plan import NOT_TRACED
from app.settings import Engine, Telemetry


@dataclass(frozen=True)
class Terms:
    engine: Engine
    """What an order does not say."""
    gpus: tuple[str, ...] | None
    telemetry: Telemetry = NOT_TRACED
    """Whether its engines send traces, and where to."""

    @property
    def takes_any_name(self) -> bool:
        """A server of the user's own may list its model as it likes."""
        return self.engine.type == "command"

    def meant(self, order: Order) -> Engine:
        args = self.engine.args if order.args is None else order.args
        return replace(self.engine, model=order.model, args=args, replicas=1, gpus=self.gpus)

    def names(self, order: Order) -> tuple[str, ...]:
        return order.names or (self.meant(order).served_name,)

    def headless(self, order: Order) -> bool:
        """Its engine is part of one on another machine, and serves no HTTP."""
        return "--headless" in self.meant(order).args

    def alike(self, one: Order, other: Order) -> bool:
        return (self.meant(one), self.names(one)) == (self.meant(other), self.names(other))


def fault(order: Order) -> str | None:
    """What can be seen of it without starting anything, as the end of a sentence."""
    words = (order.model, *order.names, *(order.args or ()))
    if not all(_is_a_word(word) for word in words) or not all((order.model, *order.names)):
        return "its words must be text without NUL, and its names must not be empty"
    if order.model.startswith(("/", "./", "../", "~")) and not os.path.exists(os.path.expanduser(order.model)):
        return "there is no such path on its machine"
    return None


def _is_a_word(text: str) -> bool:
    """Of a command line."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
