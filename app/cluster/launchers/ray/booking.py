"""One seat as Ray has it: a placement group for what the worker needs, and an actor in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from app.cluster.launchers.losses import ending
from app.cluster.launchers.ray.seat import Seat
from app.cluster.launchers.ray.words import Ended, Wanted

GET_S = 5.0
ELSEWHERE = "No module named 'app'"


@dataclass
class Booking:
    name: str
    group: Any
    actor: Any
    run: Any
    """Its result is how the worker ended. Until then it is lost and found again by Ray, as often as need be."""
    since: float
    node: str = ""
    """The address of the node that it is on; empty while it waits."""

    @classmethod
    def make(cls, name: str, wanted: Wanted, now: float) -> Self:
        group = placement_group([wanted.need], strategy="STRICT_PACK", name=name)
        actor = (
            ray.remote(Seat)
            .options(
                name=name,
                num_gpus=wanted.gpus,
                num_cpus=wanted.cpus,
                resources=wanted.resources,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
            )
            .remote(name, wanted)
        )
        return cls(name, group, actor, actor.run.remote(), now)

    def node_id(self, table: Mapping[str, Any]) -> str | None:
        """By Ray's own account of its groups."""
        group = table.get(self.group.id.hex(), {"state": "REMOVED"})
        return group["bundles_to_node_id"][0] if group["state"] == "CREATED" else None

    def give_back(self) -> None:
        """The actor's process is killed; the keeper in it sees to its worker."""
        ray.kill(self.actor)
        remove_placement_group(self.group)

    def ending(self) -> str:
        """Why `run` has ended: a sentence."""
        try:
            ended: Ended = ray.get(self.run, timeout=GET_S)
        except RayTaskError as error:
            return f"{self.name} could not be started: {error.cause}."
        except RayError as error:
            return self._loss(str(error))
        said = f" It said: {ended.tail[-1]}" if ended.tail else ""
        return f"{self.name} ended by itself: {ending(ended.code)}.{said}"

    def _loss(self, told: str) -> str:
        if ELSEWHERE in told:
            return f"{self.name} could not be started: gllm is not installed for the Python that runs Ray on its node."
        return f"Ray lost {self.name} for good: {' '.join(told.split())}"
