"""The Ray job that owns the seats: a process of its own, which the launcher keeps.

Of its own, because Ray's core ends the process it is in when the cluster is lost, takes over its signals and writes to
its terminal, none of which a gateway or a command line can have. Its environment says what is wanted
(`words.VARIABLE`), and it prints news (`words.MARK`). SIGTERM ends all workers, then itself.

Ray places the actors, and places them again when their process or their node is lost. What is left to do here: as many
seats as are wanted, a new one for each whose worker ended by itself, and saying so.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec
import ray
from ray.util import placement_group_table

from app.clock import Clock
from app.cluster.launchers.ray import words
from app.cluster.launchers.ray.address import AUTO, NoCluster
from app.cluster.launchers.ray.booking import Booking
from app.cluster.launchers.ray.plan import Deaths, Node, Waiting, cannot_reach, changes
from app.cluster.launchers.ray.words import Connected, Lacking, News, Said, Seat, State, Wanted

LOOK_S = 0.5
STOP_S = 6.0
"""For all workers together, when the launcher ends. What is left of them then is killed."""

GAVE_UP = 2

Tell = Callable[[News], None]


class Driver:
    """Leaving its block ends all workers, and gives everything back to Ray."""

    def __init__(self, wanted: Wanted, tell: Tell, clock: Clock = time.monotonic) -> None:
        self._wanted = wanted
        self._tell = tell
        self._clock = clock
        self._here = ray.util.get_node_ip_address()
        self._bookings: dict[int, Booking] = {}
        self._deaths: dict[int, Deaths] = {}
        self._nodes: dict[str, Node] = {}
        self._waiting = Waiting(wanted.need, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        stops = [booking.actor.stop.remote() for booking in self._bookings.values() if booking.node]
        if stops:
            ray.wait(stops, num_returns=len(stops), timeout=STOP_S)
        while self._bookings:
            self._bookings.popitem()[1].give_back()

    def look(self) -> None:
        """One round, of `LOOK_S` at most."""
        self._look_at_nodes()
        self._look_at_groups()
        placed = {number: bool(booking.node) for number, booking in self._bookings.items()}
        todo = changes(self._wanted.workers, self._nodes.values(), self._wanted.need, placed)
        for number in todo.drop:
            self._drop(number)
        for number in todo.add:
            if self._deaths_of(number).is_over:
                self._book(number)
        if sentence := self._waiting.sentence(sum(placed.values()), len(placed)):
            self._tell(Said(sentence))
        self._await_ends()

    def _look_at_nodes(self) -> None:
        before = self._nodes
        self._nodes = {each["NodeID"]: _node(each) for each in ray.nodes() if each["Alive"]}
        for node in (self._nodes[each] for each in self._nodes.keys() - before.keys()):
            self._joined(node)
        for node in (before[each] for each in before.keys() - self._nodes.keys()):
            self._tell(Said(f"Node {node.address} is gone."))

    def _joined(self, node: Node) -> None:
        room = node.room(self._wanted.need)
        self._tell(Said(f"Node {node.address} has room for {room} worker{'s' * (room != 1)}."))
        gateways = self._wanted.env.get("GATEWAY_URLS", "")
        if room and gateways and cannot_reach(node.address, gateways.split(","), self._here):
            self._tell(Said(f"Workers on {node.address} cannot reach a gateway that listens on loopback: {gateways}."))

    def _look_at_groups(self) -> None:
        table = placement_group_table()
        for booking in self._bookings.values():
            on = self._nodes.get(booking.node_id(table) or "")
            if (node := on.address if on else "") != booking.node:
                booking.node = node
                self._tell(Seat(name=booking.name, state=State.PLACED if node else State.WAITING, node=node))

    def _book(self, number: int) -> None:
        name = f"{self._wanted.prefix}-{number}"
        self._bookings[number] = Booking.make(name, self._wanted, self._clock())
        self._tell(Seat(name=name))

    def _drop(self, number: int) -> None:
        booking = self._bookings.pop(number)
        booking.give_back()
        self._tell(Seat(name=booking.name, state=State.DROPPED))

    def _await_ends(self) -> None:
        runs = {booking.run: number for number, booking in self._bookings.items()}
        if not runs:
            time.sleep(LOOK_S)
            return
        for run in ray.wait(list(runs), num_returns=len(runs), timeout=LOOK_S)[0]:
            self._ended(runs[run])

    def _ended(self, number: int) -> None:
        """Its worker ended by itself, or Ray has lost the actor for good."""
        booking = self._bookings.pop(number)
        reason = words.clipped(booking.ending())
        booking.give_back()
        pause_s = self._deaths_of(number).pause_after(self._clock() - booking.since)
        reason += f" It is placed again in {pause_s:.1f} s."
        self._tell(Seat(name=booking.name, state=State.ENDED, node=booking.node, reason=reason))

    def _deaths_of(self, number: int) -> Deaths:
        return self._deaths.setdefault(number, Deaths(self._clock))


def _node(seen: dict[str, object]) -> Node:
    return msgspec.convert(
        {"id": seen["NodeID"], "address": seen["NodeManagerAddress"], "resources": seen["Resources"]}, Node
    )


def connect(address: str) -> None:
    """Raises `NoCluster`."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except ConnectionError as error:
        if address != AUTO:
            raise NoCluster(f"Ray at {address} cannot be used: {_line(error)}") from error
        raise NoCluster(
            "No Ray cluster was found on this machine: start one (ray start --head), join one "
            "(ray start --address HOST:PORT), or name one (--ray-address, RAY_ADDRESS)."
        ) from error
    except Exception as error:  # Ray has many, of many kinds, and all of them are reasons
        raise NoCluster(f"Ray at {address} cannot be used: {_line(error)}") from error


def _line(error: Exception) -> str:
    """Ray says nothing at all of the likeliest reason."""
    return " ".join(str(error).split()) or "this machine is no node of it (ray start --address HOST:PORT makes it one)."


def tell(news: News) -> None:
    print(words.told(news), flush=True)


def main() -> int:
    wanted = msgspec.json.decode(os.environ.pop(words.VARIABLE), type=Wanted)
    try:
        connect(wanted.address)
    except NoCluster as error:
        tell(Lacking(words.clipped(str(error))))
        return GAVE_UP
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())  # after Ray has set its own
    try:
        tell(Connected())
        with Driver(wanted, tell) as driver:
            while not stopping.is_set():
                driver.look()
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
