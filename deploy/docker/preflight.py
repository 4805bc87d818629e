"""Runs once before the services of docker-compose.yml: a wrong value in `.env` ends the start here, with a sentence.

What the services would each refuse again and again, restarting, is refused once; and what they share and nobody has
chosen is made here: the secret of the cluster.
"""

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from app.settings import BadSetting, Settings
from app.settings.values import is_loopback

REFUSED = 2
SHORTEST_PASSWORD = 12


def check(environment: Mapping[str, str]) -> None:
    """Raises `BadSetting`."""
    told = [each for each in (_gateway(environment), _grafana(environment)) if each]
    if told:
        raise BadSetting("\n".join(told))


def _gateway(environment: Mapping[str, str]) -> str:
    try:  # CLUSTER_SECRET_FILE is what this program is about to write
        Settings.load({name: value for name, value in environment.items() if name != "CLUSTER_SECRET_FILE"}, None)
    except BadSetting as error:
        return str(error)
    return ""


def _grafana(environment: Mapping[str, str]) -> str:
    bound, password = environment.get("GRAFANA_BIND", ""), environment.get("GRAFANA_PASSWORD", "")
    if is_loopback(bound or "127.0.0.1") or len(password) >= SHORTEST_PASSWORD:
        return ""
    return (
        f"GRAFANA_BIND={bound} is reachable from other machines: GRAFANA_PASSWORD must have {SHORTEST_PASSWORD} "
        "characters or more, or remove GRAFANA_BIND."
    )


def share_a_secret(file: Path, given: str) -> None:
    """The one that was given; else the one that is there; else a new one. Nobody ever sees half of it."""
    if not given and file.is_file():
        return
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as writing:
        writing.write(given or secrets.token_urlsafe(32))
    new.replace(file)


def main(environment: Mapping[str, str]) -> int:
    try:
        check(environment)
    except BadSetting as error:
        print("\n".join(f"gllm: {line}" for line in str(error).splitlines()), file=sys.stderr)
        print("gllm: neither gateway nor engine was started. Correct .env, and start again.", file=sys.stderr)
        return REFUSED
    share_a_secret(Path(environment["CLUSTER_SECRET_FILE"]), environment.get("CLUSTER_SECRET", ""))
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
