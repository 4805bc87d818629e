"""A real Prometheus for tests, with the project's own scrape jobs and rules; only where and how often are ours."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.ports import free_port
from tests.support.processes import ROOT, Server, clean_environment

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
EVERY_S = 1.0
NOT_TESTED = "*** NOT TESTED: there is no prometheus on the PATH (on Debian and Ubuntu: apt install prometheus) ***"


def executable() -> str | None:
    return shutil.which("prometheus")


@dataclass(frozen=True)
class Series:
    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]
    """Time and value, in order. Where a query has none (NaN), neither has this."""

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True)
class Exemplar:
    labels: Mapping[str, str]
    at: float
    value: float


NAME = "__meta_dns_name"
"""What the project's own relabelling makes the instance of."""
Job = Mapping[str, str]
"""Who is looked at in place of those whom the project names: addresses here, and what each is called."""


class Prometheus(Server):
    def __init__(
        self, folder: Path, jobs: Mapping[str, Job], config: Path = CONFIG, alertmanager: str | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        port = free_port()
        here = folder / "prometheus.json"  # JSON is YAML
        made = retargeted(yaml.safe_load(config.read_text()), config.parent, jobs, port)
        if alertmanager is not None:
            made["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
        here.write_text(json.dumps(made, indent=1))
        program = executable()
        assert program is not None, NOT_TESTED
        argv = [program, f"--config.file={here}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        argv += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"]
        argv += ["--query.lookback-delta=10s", "--log.level=warn"]
        argv.append("--rules.alert.resend-delay=1s")  # what fires before it has found Alertmanager comes a minute later
        super().__init__("prometheus", argv, port, folder / "prometheus.log", clean_environment(), folder)

    def now(self, query: str) -> list[Series]:
        """An instant query. Samples that are not a number are no answer."""
        found = self._asked("query", query=query)["result"]
        return [Series(each["metric"], points) for each in found if (points := _numbers([each["value"]]))]

    def over(self, query: str, start: float, end: float, step_s: float = EVERY_S) -> list[Series]:
        found = self._asked("query_range", query=query, start=start, end=end, step=step_s)["result"]
        return [Series(each["metric"], points) for each in found if (points := _numbers(each["values"]))]

    def exemplars(self, query: str, start: float, end: float) -> list[Exemplar]:
        found = self._asked("query_exemplars", query=query, start=start, end=end)
        each = [exemplar for series in found for exemplar in series["exemplars"]]
        return [Exemplar(one["labels"], float(one["timestamp"]), float(one["value"])) for one in each]

    def values_of(self, label: str, selector: str) -> list[str]:
        values: list[str] = self._asked(f"label/{label}/values", **{"match[]": selector})
        return values

    def scraped(self) -> dict[str, str]:
        """The health of each target, by its job and address."""
        targets = self._asked("targets", state="active")["activeTargets"]
        return {f"{each['labels']['job']} {each['labels']['instance']}": each["health"] for each in targets}

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._asked("rules")["groups"] for rule in group["rules"]]

    def _asked(self, what: str, **parameters: Any) -> Any:
        answer = self.http.get(f"/api/v1/{what}", params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]


def retargeted(config: dict[str, Any], home: Path, jobs: Mapping[str, Job], port: int) -> dict[str, Any]:
    """The project's configuration, read elsewhere: jobs keep all but their addresses and their pace. Those that nobody
    stands in for are left out, as is Alertmanager."""
    mine = {"prometheus": {f"127.0.0.1:{port}": "prometheus:9090"}, **jobs}
    kept = [
        {**{key: value for key, value in each.items() if not key.endswith(("_sd_configs", "_interval", "_timeout"))}}
        | {"static_configs": [{"targets": [at], "labels": {NAME: name, "instance": name}} for at, name in job.items()]}
        for each in config["scrape_configs"]
        if (job := mine.get(each["job_name"])) is not None
    ]
    missing = mine.keys() - {each["job_name"] for each in kept}
    assert not missing, f"the configuration has no such jobs: {missing}"
    return {
        "global": {"scrape_interval": f"{EVERY_S:g}s", "evaluation_interval": f"{EVERY_S:g}s"},
        "rule_files": [str(home / pattern) for pattern in config.get("rule_files", [])],
        "scrape_configs": kept,
    }


@contextmanager
def prometheus(folder: Path, jobs: Mapping[str, Job]) -> Iterator[Prometheus]:
    server = Prometheus(folder, jobs)
    try:
        server.await_ready("/-/ready", limit_s=30)
        yield server
    finally:
        server.end()


def _numbers(values: Sequence[tuple[float, str]]) -> list[tuple[float, float]]:
    points = [(float(at), float(text)) for at, text in values]
    return [(at, value) for at, value in points if value == value]
