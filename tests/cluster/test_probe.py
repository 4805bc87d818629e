"""Every replica is asked again and again; one that is gone is noticed at once, one that is busy is forgiven."""

import asyncio

import pytest

from app.cluster import probe
from app.cluster.fleet import Fleet
from app.cluster.probe import MISSES_ALLOWED, Prober
from app.cluster.replica import Replica, State
from app.engines.scripted import Scripted
from app.errors import (
    EngineBusy,
    EngineConnectTimeout,
    EngineError,
    EngineLacks,
    EngineMisconfigured,
    EngineOutOfReach,
    EngineSilent,
    EngineUnreachable,
)
from app.gateway.routing import round_robin
from app.reliability.limit import AdaptiveLimit, Load
from app.telemetry.base import ReplicaChanged
from tests.support.recorder import Recorder
from tests.support.until import until


class Listed(Scripted):
    """Answers a probe as it is told."""

    answer: dict[str, int | None] | Exception
    asked = 0
    go_on_answering: asyncio.Event | None = None
    tells: Load | Exception | None = None
    asked_for_load = 0

    async def models(self) -> dict[str, int | None]:
        self.asked += 1
        if self.go_on_answering is not None:
            await self.go_on_answering.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def load(self) -> Load | None:
        self.asked_for_load += 1
        if isinstance(self.tells, Exception):
            raise self.tells
        return self.tells


class Place:
    def __init__(self, *names: str, asks_load: bool = False) -> None:
        self.recorder = Recorder()
        self.fleet = Fleet(round_robin(), self.recorder)
        self.prober = Prober(self.fleet, every_s=3_600, asks_load=asks_load)
        self.engines = {name: Listed() for name in names}
        for name, engine in self.engines.items():
            engine.answer = {"demo": None}
            self.fleet.add(Replica(name, engine))

    def state(self, name: str) -> State:
        return next(replica.state for replica in self.fleet.replicas if replica.name == name)


async def test_the_first_look_waits_for_those_that_answer_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "FIRST_LOOK_S", 0.05)
    place = Place("a", "b")
    place.engines["b"].go_on_answering = asyncio.Event()
    await place.prober.look_first()
    assert (place.state("a"), place.state("b")) == (State.READY, State.STARTING)
    place.engines["b"].go_on_answering.set()
    await place.prober.round()
    assert place.state("b") is State.READY


async def test_a_replica_is_ready_once_it_tells_its_models() -> None:
    place = Place("a")
    place.engines["a"].answer = {"demo": 2_048}
    await place.prober.round()
    assert place.state("a") is State.READY
    assert place.fleet.models == {"demo": 2_048}


async def test_a_ready_replica_may_miss_some_probes_and_no_more() -> None:
    place = Place("a")
    await place.prober.round()
    place.engines["a"].answer = EngineSilent()
    for _ in range(MISSES_ALLOWED):
        await place.prober.round()
        assert place.state("a") is State.READY
    await place.prober.round()
    assert place.state("a") is State.FAILING
    assert place.recorder.events[-1] == ReplicaChanged("a", "failing", "EngineSilent")


async def test_an_answer_in_between_forgives_the_misses() -> None:
    place = Place("a")
    for _ in range(5):
        place.engines["a"].answer = {"demo": None}
        await place.prober.round()
        place.engines["a"].answer = EngineBusy()
        for _ in range(MISSES_ALLOWED):
            await place.prober.round()
    assert place.state("a") is State.READY


@pytest.mark.parametrize("error", [EngineUnreachable(), EngineConnectTimeout()])
async def test_a_replica_that_cannot_be_reached_is_gone_at_once(error: EngineError) -> None:
    place = Place("a")
    await place.prober.round()
    place.engines["a"].answer = error
    await place.prober.round()
    assert place.state("a") is State.FAILING


async def test_whom_we_cannot_ask_we_know_nothing_new_of() -> None:
    place = Place("a", "b")
    await place.prober.round()
    place.engines["b"].answer = EngineUnreachable()
    await place.prober.round()
    for engine in place.engines.values():
        engine.answer = EngineOutOfReach()
    for _ in range(2 * MISSES_ALLOWED):
        await place.prober.round()
    assert (place.state("a"), place.state("b")) == (State.READY, State.FAILING)


async def test_a_replica_that_answers_again_is_back_at_once() -> None:
    place = Place("a")
    await place.prober.round()
    place.engines["a"].answer = EngineUnreachable()
    for _ in range(5):
        await place.prober.round()
    place.engines["a"].answer = {"demo": None}
    await place.prober.round()
    assert place.state("a") is State.READY
    assert len(place.recorder.events) == 4, "starting, ready, failing, ready: nothing else is worth a word"


async def test_models_that_change_are_known_after_the_next_probe() -> None:
    place = Place("a")
    await place.prober.round()
    place.engines["a"].answer = {"demo": None, "lora": None}
    await place.prober.round()
    assert set(place.fleet.models) == {"demo", "lora"}
    place.engines["a"].answer = {}
    await place.prober.round()
    assert place.fleet.models == {}
    assert not place.fleet.ready


async def test_replicas_are_asked_side_by_side() -> None:
    place = Place("slow", "quick")
    place.engines["slow"].go_on_answering = asyncio.Event()
    running = asyncio.create_task(place.prober.round())
    await until(lambda: place.state("quick") is State.READY)
    assert place.state("slow") is State.STARTING
    place.engines["slow"].go_on_answering.set()
    await running
    assert place.state("slow") is State.READY


async def test_a_silent_replica_keeps_no_other_from_coming_back() -> None:
    place = Place("silent", "other")
    place.engines["silent"].go_on_answering = asyncio.Event()
    probing = asyncio.create_task(Prober(place.fleet, every_s=0.001).run())
    await until(lambda: place.state("other") is State.READY, steps=1_000_000)
    place.engines["other"].answer = EngineUnreachable()
    await until(lambda: place.state("other") is State.FAILING, steps=1_000_000)
    place.engines["other"].answer = {"demo": None}
    await until(lambda: place.state("other") is State.READY, steps=1_000_000)
    assert place.state("silent") is State.STARTING
    probing.cancel()
    await asyncio.wait({probing})


async def test_one_that_misbehaves_beyond_words_does_not_end_the_probing_of_others() -> None:
    place = Place("odd", "fine")
    await place.prober.round()
    place.engines["odd"].answer = ValueError("a defect of ours, or an engine nobody foresaw")
    for _ in range(MISSES_ALLOWED + 1):
        await place.prober.round()
    assert place.state("odd") is State.FAILING
    assert place.state("fine") is State.READY
    assert place.engines["fine"].asked == MISSES_ALLOWED + 2


async def test_a_replica_that_is_removed_while_it_is_asked_does_not_come_back() -> None:
    place = Place("a")
    place.engines["a"].go_on_answering = asyncio.Event()
    running = asyncio.create_task(place.prober.round())
    await until(lambda: place.engines["a"].asked == 1)
    place.fleet.remove("a")
    place.engines["a"].go_on_answering.set()
    await running
    assert place.fleet.models == {}
    assert place.recorder.events[-1] == ReplicaChanged("a", "removed", "")


async def test_probing_ends_when_it_is_cancelled() -> None:
    place = Place("a")
    place.engines["a"].go_on_answering = asyncio.Event()
    running = asyncio.create_task(place.prober.run())
    await until(lambda: place.engines["a"].asked == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


# --- load -----------------------------------------------------------------------------------------------------------


async def test_load_is_asked_for_only_where_somebody_looks_at_it() -> None:
    place = Place("a")
    await place.prober.round()
    assert place.engines["a"].asked_for_load == 0
    replica = place.fleet.replicas[0]
    replica.limit = AdaptiveLimit(8, 1, 16)
    await place.prober.round()
    assert place.engines["a"].asked_for_load == 1


async def test_what_an_engine_tells_of_others_counts_until_it_tells_anew() -> None:
    place = Place("a", asks_load=True)
    replica, engine = place.fleet.replicas[0], place.engines["a"]
    engine.tells = Load(waiting=0, running=16, kv_share=None)
    await place.prober.round()
    assert replica.foreign.sequences == 16
    assert replica.beside > 0
    engine.tells = Load(waiting=0, running=0, kv_share=None)
    await place.prober.round()
    assert (replica.foreign.sequences, replica.beside) == (0, 0)


@pytest.mark.parametrize("silent_in", ["models", "load"])
async def test_what_is_told_no_more_fades(silent_in: str) -> None:
    place = Place("a", asks_load=True)
    replica, engine = place.fleet.replicas[0], place.engines["a"]
    engine.tells = Load(waiting=0, running=16, kv_share=None)
    await place.prober.round()
    if silent_in == "models":
        engine.answer = EngineSilent()
    else:
        engine.tells = EngineSilent()
    await place.prober.round()
    assert replica.foreign.sequences == 8


@pytest.mark.parametrize("tells", [None, EngineLacks(), EngineMisconfigured()], ids=repr)
async def test_one_that_does_not_tell_its_load_is_well_and_not_asked_again_until_it_comes_anew(
    tells: EngineError | None,
) -> None:
    """A hosted upstream has no gauges: it is not to be asked in vain every two seconds, nor to count as failing."""
    place = Place("a", asks_load=True)
    engine = place.engines["a"]
    engine.tells = tells
    for _ in range(5):
        await place.prober.round()
    assert place.state("a") is State.READY
    assert engine.asked_for_load == 1
    engine.answer = EngineUnreachable()
    await place.prober.round()
    engine.answer = {"demo": None}
    await place.prober.round()
    assert engine.asked_for_load == 2


async def test_one_whose_load_cannot_be_read_is_well_too_and_is_asked_again() -> None:
    place = Place("a", asks_load=True)
    place.engines["a"].tells = EngineSilent()
    for _ in range(MISSES_ALLOWED + 2):
        await place.prober.round()
    assert place.state("a") is State.READY
    assert place.engines["a"].asked_for_load == MISSES_ALLOWED + 2
