"""Load on a gateway, by Locust: `make load`, or `locust -f locustfile.py --host http://gateway:8000`.

docs/load-tests.md tells what the figures are, and what they are not.
"""

import logging

import gevent
from locust import events
from locust.env import Environment
from locust.runners import WORKER_REPORT_INTERVAL, MasterRunner, WorkerRunner

from crowd import generator, verdict
from crowd.afterwards import Afterwards, give_up_keys
from crowd.figures import Figures
from crowd.people import Burst, Chat, Hangup, Retry, Source, Stream, open_calls
from crowd.settings import Settings, declare
from crowd.shape import Shape

__all__ = ["Burst", "Chat", "Hangup", "Retry", "Shape", "Source", "Stream"]

log = logging.getLogger("crowd")


class Run:
    """One test on one node, from its start to its verdict: workers make the load, and who started them judges."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        makes_load = not isinstance(environment.runner, MasterRunner)
        self._watch = [generator.watch(environment)] if makes_load else []
        self._judges = not isinstance(environment.runner, WorkerRunner)
        self._waits_s = 0.0 if makes_load else max(environment.stop_timeout, WORKER_REPORT_INTERVAL) + 1
        alone = self._judges and Settings.of(environment).alone
        self._afterwards = Afterwards.at(environment) if alone else None

    def end(self) -> None:
        open_calls.join(timeout=self._environment.stop_timeout)
        open_calls.kill()
        gevent.killall(self._watch)
        give_up_keys(self._environment)
        if self._judges:
            self._judge()

    def _judge(self) -> None:
        gevent.sleep(self._waits_s)  # until workers have told all; and they hear again, so that they can be told to go
        for wrong in self._afterwards.wrong(self._environment) if self._afterwards else []:
            Figures(self._environment).broken("afterwards", wrong)
        log.info(verdict.told(self._environment))
        for each in verdict.complaints(self._environment):
            log.error(each)
        self._environment.process_exit_code = verdict.code(self._environment)


runs: dict[Environment, Run] = {}


def begin(environment: Environment, **said: object) -> None:
    runs[environment] = Run(environment)


def end(environment: Environment, **said: object) -> None:
    if run := runs.pop(environment, None):  # there is none where a wrong value kept it from starting
        run.end()


def stop_first(environment: Environment, **said: object) -> None:
    """Ctrl+C comes here before anybody has stopped, and the exit code is taken right after."""
    if environment.runner is not None and environment in runs:
        environment.runner.stop()


events.init_command_line_parser.add_listener(declare)
events.test_start.add_listener(begin)
events.test_stop.add_listener(end)
events.quitting.add_listener(stop_first)
