"""The shape of the load, in Locust's words."""

import logging

from locust import LoadTestShape, User

from crowd.levels import users
from crowd.people import PERSONS, Source
from crowd.settings import Settings

log = logging.getLogger("crowd")

USUAL_S = 60.0
"""Of a run with no time of its own, where its shape has an end."""
MOST_A_SECOND = 100.0
"""Users that come or go; Locust warns of more."""

Tick = tuple[int, float, list[type[User]] | None]


class Shape(LoadTestShape):
    """`--users` at a level of 1, for `--run-time`."""

    use_common_options = True

    def tick(self) -> Tick | None:
        assert self.runner is not None
        environment = self.runner.environment
        options = environment.parsed_options
        assert options is not None
        try:
            settings = Settings.of(environment)
        except ValueError as error:  # from the web page; the command line has been looked at
            log.error(error)
            return None
        at_s: float = self.get_run_time()  # type: ignore[no-untyped-call]
        lasts_s = float(options.run_time or 0)
        if not lasts_s and settings.shape != "steady":
            lasts_s = USUAL_S
        if lasts_s and at_s >= lasts_s:
            self.runner.stop()  # else a headless master would quit and judge first, and then tell its workers to stop
            return None
        count = users(settings.shape, at_s / lasts_s if lasts_s else 0.0, int(options.num_users or 1))
        rate = float(options.spawn_rate or 1) if settings.shape == "steady" else MOST_A_SECOND
        return count, rate, [Source] if settings.open else weighed(settings.weights)


def weighed(weights: dict[str, int]) -> list[type[User]]:
    """Those who come."""
    for kind, weight in weights.items():
        PERSONS[kind].weight = weight
    return [PERSONS[kind] for kind in weights]
