"""The settings: one frozen tree, read once at the composition root.

Flat names outside (`CONNECT_TIMEOUT=5` in the environment or in `.env`), a branch for each object inside
(`settings.timeouts.connect_s`). `python -m app.settings` writes `.env.example` and `docs/configuration.md` from it.
"""

from app.settings.reading import BadSetting
from app.settings.tree import (
    Admission,
    Cluster,
    Edge,
    Engine,
    Idempotency,
    Listen,
    Logs,
    Routing,
    Sampling,
    Settings,
    Storage,
    Telemetry,
    Timeouts,
)

__all__ = [
    "Admission",
    "BadSetting",
    "Cluster",
    "Edge",
    "Engine",
    "Idempotency",
    "Listen",
    "Logs",
    "Routing",
    "Sampling",
    "Settings",
    "Storage",
    "Telemetry",
    "Timeouts",
]
