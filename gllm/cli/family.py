"""Processes that share a port: where each listens for machines, and what they show each other."""

import os

from app.gateway.siblings import Family
from app.settings import Settings
from gllm.cli.greeting import near

KEY = "GLLM_FAMILY_KEY"
"""In the environment of each: never among the words, which everybody on the machine can read."""


def place_of(settings: Settings, number: int) -> str:
    telemetry = settings.telemetry
    return near(telemetry.metrics_host, (telemetry.metrics_port or 0) + number)


def family_of(settings: Settings, number: int) -> Family:
    """As process `number` knows it, whose METRICS_PORT is already its own."""
    others = [each - number for each in range(settings.listen.processes) if each != number]
    return Family(tuple(place_of(settings, each) for each in others), os.environ.pop(KEY))
