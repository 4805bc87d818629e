"""Whether replicas that fail are left alone, and given their chance."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from app.engines.scripted import Work
from app.errors import EngineBusy, EngineError, EngineRefused
from app.telemetry.base import CircuitChanged
from tests.simulation.history import History
from tests.simulation.invariants.base import AT_ONCE_S, invariant


@invariant
def a_circuit_opens_only_after_failures_in_a_row(history: History) -> Iterator[str]:
    """Backpressure is none, and neither is a client that leaves."""
    most = history.world.settings["CIRCUIT_FAILURES"]
    for (gateway, name), periods in _circuits(history).items():
        failed = [work.ended for work in _works(history, gateway, name) if _is_blamed(work)]
        for state, since, _ in periods:
            before = sum(ended is not None and ended <= since + AT_ONCE_S for ended in failed)
            if state == "open" and before < most:
                yield f"the circuit of {name} opened at {since:.3f} after {before} failures in all"


def _is_blamed(work: Work) -> bool:
    """It failed; or it spoke what a gateway cannot read, and does not know so itself."""
    fault = isinstance(work.error, EngineError) and not isinstance(work.error, EngineBusy | EngineRefused)
    return fault or not work.script.ends_properly


@invariant
def an_open_circuit_lets_nobody_through(history: History) -> Iterator[str]:
    for (gateway, name), periods in _circuits(history).items():
        for state, since, until in periods:
            for work in _works(history, gateway, name) if state == "open" else []:
                if since + AT_ONCE_S < work.began < until - AT_ONCE_S:
                    yield f"{name} was asked for {work.call.id} at {work.began:.3f}, its circuit was open"


@invariant
def a_half_open_circuit_lets_one_try_at_a_time(history: History) -> Iterator[str]:
    for (gateway, name), periods in _circuits(history).items():
        works = _works(history, gateway, name)
        for state, since, until in periods:
            if state == "half_open":
                trials = [work for work in works if since - AT_ONCE_S <= work.began < until - AT_ONCE_S]
                for one, other in pairwise(trials):
                    if one.ended is None or one.ended > other.began + AT_ONCE_S:
                        yield f"{one.call.id} and {other.call.id} tried {name} at once"


def _works(history: History, gateway: int, name: str) -> list[Work]:
    """What that engine did for that gateway."""
    came = {seen.visit.id for seen in history.all_seen if seen.visit.gateway == gateway}
    return [work for work in history.works[name] if work.call.id in came]


def _circuits(history: History) -> dict[tuple[int, str], list[tuple[str, float, float]]]:
    """By gateway and replica: in which state its circuit was, since when, and until when."""
    periods: dict[tuple[int, str], list[tuple[str, float, float]]] = defaultdict(list)
    for at, gateway, event in history.events:
        if isinstance(event, CircuitChanged):
            known = periods[gateway, event.replica]
            if known:
                known[-1] = (*known[-1][:2], at)
            known.append((event.state, at, history.ended))
    return periods
