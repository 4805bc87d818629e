"""The generator itself: a figure is worth nothing where it was the one that had no time."""

from time import perf_counter, process_time

import gevent
from locust.env import Environment

from crowd.figures import Figures
from crowd.settings import Settings

EVERY_S = 0.1
MOST_CPU = 70.0
"""Percent of one core, which is all that a process of Locust can use."""

CPU, LATE = ("locust", "cpu, % of a core"), ("locust", "loop late")
SENT_LATE, GAVE_UP = ("locust", "sent late"), ("locust", "gave up a caller")
Row = tuple[str, str]
"""Its type and its name."""


def watch(environment: Environment) -> gevent.Greenlet:
    """Until it is killed: once in a while, how late it is for that, and once a second what it has used."""
    return gevent.spawn(_watch, Figures(environment))


def _watch(figures: Figures) -> None:
    began, used = perf_counter(), process_time()
    while True:
        due = perf_counter() + EVERY_S
        gevent.sleep(EVERY_S)
        figures.note(*LATE, max(0.0, perf_counter() - due) * 1e3)
        if (lasted := perf_counter() - began) >= 1:
            figures.note(*CPU, (process_time() - used) / lasted * 100)
            began, used = perf_counter(), process_time()


def complaint(environment: Environment) -> str:
    """Why the figures are to be doubted; empty if they are not."""
    rows = environment.stats.entries
    cpu_row, late_row, gave_up_row = (rows.get((name, what)) for what, name in (CPU, LATE, GAVE_UP))
    cpu = cpu_row.avg_response_time if cpu_row else 0.0
    late_ms = late_row.get_response_time_percentile(0.99) if late_row else 0
    if cpu > MOST_CPU:
        return f"it used {cpu:.0f} % of a core; start more processes (--processes)"
    if late_ms > Settings.of(environment).late_ms:
        return f"its loop was {late_ms} ms late at p99, and used {cpu:.0f} % of a core: this machine was too busy"
    return f"{gave_up_row.num_requests} callers were given up: too many were open already" if gave_up_row else ""
