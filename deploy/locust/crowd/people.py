"""The users of Locust: persons, who wait for an answer and read it; and sources of callers, which wait for nobody."""

import itertools
import logging
from time import perf_counter
from typing import ClassVar

import gevent
from gevent.pool import Pool
from locust import User, task
from locust.env import Environment
from locust.log import greenlet_exception_logger

from crowd.caller import Caller
from crowd.figures import Figures
from crowd.generator import GAVE_UP, SENT_LATE
from crowd.kinds import KINDS
from crowd.line import Line
from crowd.settings import Key, Settings

MOST_OPEN = 5000
"""Callers of sources who are not answered yet. Beyond that it is the generator that gives up."""

open_calls = Pool(MOST_OPEN)
"""They outlive their source: that fewer come does not make those leave who are there."""

_unforeseen = greenlet_exception_logger(logging.getLogger("crowd"))
_turns = itertools.count()


def next_key(settings: Settings) -> Key:
    return settings.keys[next(_turns) % len(settings.keys)]


class Person(User):
    """The next call is made when the last has ended, and was read, and when the gateway asked to come again."""

    abstract = True
    kind: ClassVar[str]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        settings = Settings.of(environment)
        line = Line(self.host or "", settings.deadline_s, most_at_once=max(settings.burst, 2))
        self.caller = Caller(line, settings, next_key(settings), Figures(environment))
        self._asked_to_wait_s = 0.0

    def wait_time(self) -> float:
        return max(self._asked_to_wait_s, self.caller.dice.uniform(0, 2 * self.caller.settings.think_s))

    @task
    def call(self) -> None:
        self._asked_to_wait_s = KINDS[self.kind](self.caller, perf_counter())

    def on_stop(self) -> None:
        self.caller.line.close()


class Chat(Person):
    kind = "chat"


class Stream(Person):
    kind = "stream"


class Retry(Person):
    kind = "retry"


class Hangup(Person):
    kind = "hangup"


class Burst(Person):
    kind = "burst"


PERSONS: dict[str, type[Person]] = {each.kind: each for each in (Chat, Stream, Retry, Hangup, Burst)}


class Source(User):
    """One new caller a second, as they come who know nothing of each other. Nobody waits for an answer to somebody
    else, and what a call took counts from its moment, however late it was sent.
    """

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        settings = self._settings = Settings.of(environment)
        self._figures = Figures(environment)
        line = Line(self.host or "", settings.deadline_s, most_at_once=MOST_OPEN * max(settings.burst, 2))
        self._callers = [Caller(line, settings, key, self._figures) for key in settings.keys]
        self._dice = self._callers[0].dice
        self._due = perf_counter()

    @task
    def call(self) -> None:
        self._due += self._dice.expovariate(1.0)
        gevent.sleep(max(0.0, self._due - perf_counter()))
        self._figures.note(*SENT_LATE, (perf_counter() - self._due) * 1e3)
        if open_calls.full():
            self._figures.note(*GAVE_UP)
            return
        (kind,) = self._dice.choices(list(self._settings.weights), list(self._settings.weights.values()))
        caller = self._callers[next(_turns) % len(self._callers)]
        open_calls.spawn(KINDS[kind], caller, self._due).link_exception(_unforeseen)
