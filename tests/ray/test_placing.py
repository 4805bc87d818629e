"""The launcher over a real Ray: nodes with GPUs that do not exist, and a stand-in for the worker."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.cluster.launchers.ray.launcher import RayLacks, RayLauncher
from app.cluster.launchers.ray.words import Seat, State, Wanted
from tests.ray.nodes import Nodes, node

pytestmark = pytest.mark.timeout(180)  # the first one waits for Ray to start

STAND_IN = Path(__file__).with_name("stand_in.py")
TOO_LONG_S = 40.0
SECRET = "not for other eyes"
A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
DRIVER = "app.cluster.launchers.ray.driver"


@dataclass
class Scene:
    """What the launcher told, and what the stand-ins wrote down."""

    folder: Path
    seats: list[Seat] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def starts(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def last(self, name: str) -> dict[str, Any]:
        return self.starts(name)[-1]

    def states(self, name: str) -> list[State]:
        return [seat.state for seat in self.seats_of(name)]

    def seats_of(self, name: str) -> list[Seat]:
        return [seat for seat in self.seats if seat.name == name]

    def running(self) -> list[str]:
        names = [path.stem for path in self.folder.glob("*.starts")]
        return [name for name in names if all(psutil.pid_exists(pid) for pid in self.last(name)["pids"])]

    def pids(self) -> list[int]:
        """Of all that was ever started."""
        return [pid for path in self.folder.glob("*.starts") for one in self.starts(path.stem) for pid in one["pids"]]

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(TOO_LONG_S):
            while not happened():
                await asyncio.sleep(0.05)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture(autouse=True)
def nothing_is_left(scene: Scene) -> Iterator[None]:
    yield
    assert [pid for pid in scene.pids() if psutil.pid_exists(pid)] == []


@asynccontextmanager
async def launched(cluster: Nodes, scene: Scene, **wanted: Any) -> AsyncIterator[RayLauncher]:
    launcher = RayLauncher(
        Wanted(
            address=cluster.address,
            program=(sys.executable, str(STAND_IN), str(scene.folder)),
            env={"CLUSTER_SECRET": SECRET, "STATE_DIR": str(scene.folder)},
            **wanted,
        ),
        scene.folder,
        on_change=scene.seats.append,
        on_said=scene.said.append,
        again_s=0.5,
    )
    async with launcher:
        yield launcher


@pytest.fixture(scope="module")
def three_gpus(cluster: Nodes) -> Iterator[Nodes]:
    """One on A, two on B."""
    with node(cluster, A, "0"), node(cluster, B, "1,2"):
        yield cluster


async def test_each_gpu_gets_a_worker_and_leaving_ends_them_all(three_gpus: Nodes, scene: Scene) -> None:
    async with launched(three_gpus, scene) as launcher:
        await scene.until(lambda: all(scene.starts(f"ray-{number}") for number in range(3)))
        placed = {seat.name: seat.node for seat in launcher.seats if seat.state is State.PLACED}
        workers = {name: scene.last(name) for name in placed}
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        left_at = time.monotonic()
    assert time.monotonic() - left_at < 10
    assert sorted(placed.values()) == [A, B, B]
    assert {name: worker["flags"]["host"] for name, worker in workers.items()} == placed
    assert sorted(worker["flags"]["gpus"] for worker in workers.values()) == ["0", "1", "2"]
    assert all(worker["env"]["CUDA_VISIBLE_DEVICES"] == worker["flags"]["gpus"] for worker in workers.values())
    assert all(worker["env"]["CLUSTER_SECRET"] == SECRET for worker in workers.values())
    assert not any(SECRET in command for command in commands)
    assert not any("OMP_NUM_THREADS" in worker["env"] for worker in workers.values())


async def test_a_worker_gets_as_many_gpus_of_one_node_as_it_needs(three_gpus: Nodes, scene: Scene) -> None:
    async with launched(three_gpus, scene, gpus=2):
        await scene.until(lambda: scene.starts("ray-0"))
    assert scene.last("ray-0")["flags"]["host"] == B
    assert sorted(scene.last("ray-0")["flags"]["gpus"].split(",")) == ["1", "2"]
    assert not scene.seats_of("ray-1")


async def test_a_worker_on_the_cpu_is_told_so(three_gpus: Nodes, scene: Scene) -> None:
    async with launched(three_gpus, scene, workers=1, gpus=0):
        await scene.until(lambda: scene.starts("ray-0"))
    assert scene.last("ray-0")["flags"]["gpus"] == "none"


async def test_a_worker_that_ends_by_itself_is_placed_again_after_a_pause(three_gpus: Nodes, scene: Scene) -> None:
    async with launched(three_gpus, scene, workers=1):
        await scene.until(lambda: scene.starts("ray-0"))
        (scene.folder / "ray-0.dies").touch()
        await scene.until(lambda: len(scene.starts("ray-0")) == 2)
    ended = next(seat for seat in scene.seats if seat.state is State.ENDED)
    assert ended.reason == (
        "ray-0 ended by itself: exit code 3. It said: out of memory, say It is placed again in 0.5 s."
    )


async def test_a_worker_whose_actor_is_killed_ends_and_ray_starts_it_again(three_gpus: Nodes, scene: Scene) -> None:
    async with launched(three_gpus, scene, workers=1):
        await scene.until(lambda: scene.starts("ray-0"))
        first = scene.last("ray-0")["pids"]
        keeper = psutil.Process(first[0]).parent()
        assert keeper
        actor = keeper.parent()
        assert actor
        actor.kill()
        await scene.until(lambda: len(scene.starts("ray-0")) == 2)
        await scene.until(lambda: not any(psutil.pid_exists(pid) for pid in first))
        assert all(psutil.pid_exists(pid) for pid in scene.last("ray-0")["pids"])
    assert State.ENDED not in scene.states("ray-0")


async def test_workers_end_with_a_driver_that_is_killed_and_come_back_with_the_next(
    three_gpus: Nodes, scene: Scene
) -> None:
    async with launched(three_gpus, scene, workers=1):
        await scene.until(lambda: scene.starts("ray-0"))
        first = scene.last("ray-0")["pids"]
        drivers = [child for child in psutil.Process().children(recursive=True) if DRIVER in child.cmdline()]
        os.kill(max(drivers, key=lambda process: process.create_time()).pid, signal.SIGKILL)
        await scene.until(lambda: not any(psutil.pid_exists(pid) for pid in first))
        await scene.until(lambda: len(scene.starts("ray-0")) == 2)
    assert any(line.startswith("The Ray job ended: killed by SIGKILL") for line in scene.said)


async def test_the_workers_of_a_killed_node_come_back_on_another(three_gpus: Nodes, scene: Scene) -> None:
    async with launched(three_gpus, scene, workers=2):
        await scene.until(lambda: all(scene.starts(f"ray-{number}") for number in range(2)))
        moving, staying = sorted(["ray-0", "ray-1"], key=lambda name: scene.last(name)["flags"]["host"])
        assert [scene.last(name)["flags"]["host"] for name in (moving, staying)] == [A, B]
        try:
            await asyncio.to_thread(three_gpus.kill, A)
            await scene.until(lambda: len(scene.starts(moving)) == 2)
        finally:
            await asyncio.to_thread(three_gpus.add, A, "0")
        assert scene.last(moving)["flags"]["host"] == B
        await scene.until(lambda: scene.states(moving)[-1] is State.PLACED)
    assert len(scene.starts(staying)) == 1
    assert f"Node {A} is gone." in scene.said


async def test_what_fits_nowhere_waits_and_this_is_said(three_gpus: Nodes, scene: Scene) -> None:
    async with launched(three_gpus, scene, workers=2, gpus=2):
        await scene.until(lambda: any("wait" in line for line in scene.said))
        assert len(scene.running()) == 1
    assert "1 of 2 workers have a place; the others wait for a node with 2 GPUs and 1 CPU free." in scene.said


async def test_nodes_that_come_get_workers_and_those_that_go_take_theirs_along(three_gpus: Nodes, scene: Scene) -> None:
    async with launched(three_gpus, scene) as launcher:
        await scene.until(lambda: len(scene.running()) == 3)
        await asyncio.to_thread(three_gpus.add, C, "3")
        await scene.until(lambda: len(scene.running()) == 4)
        await asyncio.to_thread(three_gpus.remove, C)
        await scene.until(lambda: scene.states("ray-3")[-1:] == [State.DROPPED])
        assert [seat.name for seat in launcher.seats] == ["ray-0", "ray-1", "ray-2"]
        assert f"Node {C} has room for 1 worker." in scene.said


async def test_without_a_cluster_there_is_one_sentence(cluster: Nodes, scene: Scene) -> None:
    with socket.create_server((A, 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(RayLacks, match=f"^No Ray cluster answers at {A}:{port}: Connection refused\\.$"):
        async with RayLauncher(Wanted(address=f"{A}:{port}"), scene.folder):
            pass


async def test_what_listens_but_is_no_ray_is_given_up(cluster: Nodes, scene: Scene) -> None:
    with socket.create_server((A, 0)) as silent:
        launcher = RayLauncher(Wanted(address=f"{A}:{silent.getsockname()[1]}"), scene.folder, connect_s=4)
        with pytest.raises(RayLacks, match=r"^Ray did not answer within 4 s\.$"):
            async with launcher:
                pass


async def test_all_of_what_needs_no_gpu_is_no_number(cluster: Nodes, scene: Scene) -> None:
    with pytest.raises(RayLacks, match="how many workers"):
        async with launched(cluster, scene, gpus=0):
            pass


async def test_an_address_of_another_kind_is_refused(cluster: Nodes, scene: Scene) -> None:
    with pytest.raises(RayLacks, match=r"^ray://somewhere:10001 is no address of a Ray cluster"):
        async with RayLauncher(Wanted(address="ray://somewhere:10001"), scene.folder):
            pass
