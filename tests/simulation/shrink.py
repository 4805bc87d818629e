"""From a world in which something is violated to a smaller one in which it still is."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tests.simulation.invariants import check
from tests.simulation.simulate import simulate
from tests.simulation.world import World

T = TypeVar("T")


def shrunk(world: World, invariant: str) -> World:
    """Fewer visits and faults, none of which can be left out. Those that stay behave as they did."""

    def violated(smaller: World) -> bool:
        return any(violation.invariant == invariant for violation in check(simulate(smaller)))

    visits = _fewest(world.visits, lambda few: violated(replace(world, visits=tuple(few))), at_least=1)
    world = replace(world, visits=tuple(visits))
    faults = _fewest(world.faults, lambda few: violated(replace(world, faults=tuple(few))), at_least=0)
    world = replace(world, faults=tuple(faults))
    at_store = _fewest(world.store_faults, lambda few: violated(replace(world, store_faults=tuple(few))), at_least=0)
    return replace(world, store_faults=tuple(at_store))


def _fewest(things: Sequence[T], enough: Callable[[Sequence[T]], bool], at_least: int) -> Sequence[T]:
    """Leaves out ever smaller pieces, for as long as the rest is enough."""
    size = len(things)
    while size > 0:
        at = 0
        while at < len(things):
            rest = [*things[:at], *things[at + size :]]
            if len(rest) >= at_least and enough(rest):
                things = rest
            else:
                at += size
        size //= 2
    return things
