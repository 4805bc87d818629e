"""The worker in this process, over real engines that do as they are told."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from app.cluster.control import Adapter, Order, WorkerState
from app.errors import LoadFailed, LoadInProgress, NotOffered, UnknownAdapter, WorkerUnreachable
from tests.cluster.worker.conftest import QUICK, Bench, engine_process, family, loaded, settled, until
from tests.support.scarce import no_more_files

EMPTY, LOADING, READY = WorkerState.EMPTY, WorkerState.LOADING, WorkerState.READY
DRAINING, STOPPED, FAILED = WorkerState.DRAINING, WorkerState.STOPPED, WorkerState.FAILED


async def test_an_engine_is_loaded_tried_and_ended(bench: Bench) -> None:
    async with bench.worker() as worker:
        assert worker.now.state is EMPTY
        status = await loaded(worker, "well-slow0.3", names=("a", "b"), id="7")
        assert (status.state, status.names, status.starts) == (READY, ("a", "b"), 1)
        assert status.order == Order(model="well-slow0.3", names=("a", "b"), id="7")
        assert status.engine_url == "http://127.0.0.1:24200"
        assert "asked for a" in bench.lines
    assert bench.states == [EMPTY, LOADING, READY, STOPPED]
    assert bench.steps == ["starting", "loading", "trying"]
    assert {status.progress.part for status in bench.seen if status.progress} >= {0.0, 0.5, 1.0}
    assert bench.seen[-1].engine_url is None


async def test_a_swap_drains_stops_starts_and_tries(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        (bench.folder / "work").write_text("1")
        await worker.load(Order(model="other"), drain_s=30)
        await asyncio.sleep(0.5)
        assert worker.now.state is DRAINING
        assert worker.now.names == ("well",)  # it still answers
        assert worker.now.coming == ("other",)
        (bench.folder / "work").write_text("0")
        status = await settled(worker)
        assert (status.state, status.names, status.starts) == (READY, ("other",), 2)
        assert status.coming == ()
    assert bench.states == [EMPTY, LOADING, READY, DRAINING, LOADING, READY, STOPPED]
    assert [step for step in bench.steps if step != "loading"] == [
        *("starting", "trying"),
        *("draining", "stopping", "starting", "trying"),
    ]


async def test_a_drain_lasts_until_all_who_look_have_seen_it(bench: Bench) -> None:
    async with bench.worker(heartbeat_s=0.5) as worker:
        await loaded(worker, "well")
        began = asyncio.get_running_loop().time()
        await worker.load(Order(model="other"), drain_s=30)
        await until(worker, lambda status: status.state is LOADING)
        assert asyncio.get_running_loop().time() - began >= 0.5


async def test_a_drain_has_an_end(bench: Bench) -> None:
    (bench.folder / "work").write_text("3")
    async with bench.worker() as worker:
        await loaded(worker, "well")
        assert (await loaded(worker, "other", drain_s=0.3)).names == ("other",)


async def test_an_engine_that_tells_no_numbers_gets_the_whole_time(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well-untold")
        began = asyncio.get_running_loop().time()
        await loaded(worker, "other", drain_s=0.7)
        assert asyncio.get_running_loop().time() - began >= 0.7


async def test_a_failed_load_goes_back_to_what_was_served(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well", id="1")
        status = await loaded(worker, "bad", id="2")
        assert (status.state, status.names) == (READY, ("well",))
        assert status.order == Order(model="well", id="1")
        assert status.failure
        assert status.failure.order.id == "2"
        assert status.failure.reason == "w did not start: exit code 1."
        assert status.failure.tail == ("loading bad", "no such model: bad")
        assert "returning" in bench.steps
        assert (await loaded(worker, "other")).failure is None


async def test_a_failed_load_tells_what_an_engines_first_process_fell_of(bench: Bench) -> None:
    async with bench.worker() as worker:
        failure = (await loaded(worker, "falls")).failure
    assert failure
    assert failure.reason == "w did not start: exit code 1. Its first error: OutOfMemoryError: CUDA out of memory."
    assert not any("out of memory" in line for line in failure.tail)
    assert failure.tail[-1] == "RuntimeError: See root cause above."


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("sick", "w has come up, but its first request was answered with 500."),
        ("mute", "w has come up, but its first request was not answered within 1 s."),
        ("well-slow9", "w was not ready after 0.5 s (ENGINE_START_TIMEOUT)."),
    ],
)
async def test_an_engine_that_only_seems_well_is_not_let_in(bench: Bench, model: str, reason: str) -> None:
    pace = type(QUICK)(start_s=0.5, try_s=1, grace_s=0.5) if "slow" in model else QUICK
    async with bench.worker(pace) as worker:
        status = await loaded(worker, model)
        assert (status.state, status.reason) == (FAILED, reason)
        assert READY not in bench.states


async def test_a_first_load_that_fails_is_not_repeated(bench: Bench) -> None:
    async with bench.worker() as worker:
        status = await loaded(worker, "bad")
        assert (status.state, status.starts) == (FAILED, 1)
        assert status.failure
        assert status.failure.tail[-1] == "no such model: bad"
        status = await loaded(worker, "well")
        assert (status.state, status.reason) == (READY, "")
    assert {seen.reason for seen in bench.seen if seen.state is LOADING} == {""}


async def test_an_engine_without_completions_is_tried_by_its_list(bench: Bench) -> None:
    async with bench.worker() as worker:
        assert (await loaded(worker, "well-embeds")).state is READY


async def test_what_is_served_already_is_not_loaded_again(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well", id="1")
        status = await worker.load(Order(model="well", names=("well",), id="2"), drain_s=5)
        assert (status.state, status.starts, status.order and status.order.id) == (READY, 1, "2")
        engine_process().kill()
        status = await until(worker, lambda status: status.starts == 2 and status.state is READY)
        assert (status.order and status.order.id) == "2"
        assert (await loaded(worker, "well", force=True)).starts == 3
        assert (await loaded(worker, "well", args=("--quiet",))).starts == 4
        assert (await loaded(worker, "well", args=("--quiet",), names=("x",))).starts == 5


async def test_two_loads_at_once_are_one_and_a_refusal(bench: Bench) -> None:
    async with bench.worker() as worker:
        order = Order(model="well-slow0.5", id="1")
        await worker.load(order, drain_s=5)
        with pytest.raises(LoadInProgress):
            await worker.load(Order(model="other"), drain_s=5)
        with pytest.raises(LoadInProgress):
            await worker.drain()
        assert (await worker.load(order, drain_s=5)).state is LOADING  # its sender did not hear the answer
        assert (await settled(worker)).names == ("well-slow0.5",)


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "~nobody/m", "", "a\0b", "a\ud800"])
async def test_what_cannot_be_right_is_refused_before_anything_stops(bench: Bench, model: str) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        with pytest.raises(LoadFailed):
            await worker.load(Order(model=model), drain_s=5)
        assert worker.now.state is READY


async def test_a_release_leaves_no_process(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        await worker.release(drain_s=5)
        assert family() == []
        assert (worker.now.state, worker.now.order, worker.now.engine_url) == (EMPTY, None, None)
        await worker.release(drain_s=5)
        assert (await loaded(worker, "well")).state is READY


async def test_a_release_gives_a_load_up(bench: Bench) -> None:
    async with bench.worker() as worker:
        await worker.load(Order(model="well-slow30"), drain_s=5)
        await until(worker, lambda status: bool(status.progress and status.progress.part == 0.0))
        async with asyncio.timeout(5):
            await asyncio.gather(worker.release(drain_s=30), worker.release(drain_s=30))
        assert worker.now.state is EMPTY


async def test_a_release_shortens_a_drain(bench: Bench) -> None:
    (bench.folder / "work").write_text("1")
    async with bench.worker() as worker:
        await loaded(worker, "well")
        await worker.load(Order(model="other"), drain_s=600)
        await asyncio.sleep(0.3)
        async with asyncio.timeout(5):
            await worker.release(drain_s=0)
        assert (worker.now.state, worker.now.starts) == (EMPTY, 1)


async def test_a_crash_is_followed_by_a_new_start(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        engine_process().kill()
        await until(worker, lambda status: status.starts == 2 and status.state is READY)
    assert bench.states == [EMPTY, LOADING, READY, LOADING, READY, STOPPED]
    assert "w ended by itself: killed by SIGKILL. It is started again in 0.0 s." in bench.lines


async def test_one_that_dies_again_and_again_is_given_up(bench: Bench) -> None:
    async with bench.worker() as worker:
        await worker.load(Order(model="well-dies0.2"), drain_s=5)
        status = await until(worker, lambda status: status.state is FAILED)
        assert (status.starts, status.reason) == (6, "w ended by itself: exit code 9.")
        assert status.failure
        assert status.failure.tail[-1] == "asked for well-dies0.2"
        assert (await loaded(worker, "well")).state is READY


async def test_another_model_can_be_loaded_while_one_dies_again_and_again(bench: Bench) -> None:
    async with bench.worker() as worker:
        await worker.load(Order(model="well-dies0.2"), drain_s=5)
        await until(worker, lambda status: status.starts == 2)
        status = await loaded(worker, "other")
        assert (status.state, status.names) == (READY, ("other",))


async def test_an_engine_that_hangs_is_ended_and_started_again(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        (bench.folder / "hang").touch()
        await until(worker, lambda status: status.state is LOADING)
        (bench.folder / "hang").unlink()
        assert (await settled(worker)).starts == 2
    assert any("w has not answered for 1 s, and is ended." in line for line in bench.lines)


async def test_an_engine_that_stands_still_is_ended_too(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        engine_process().send_signal(signal.SIGSTOP)
        await until(worker, lambda status: status.starts == 2 and status.state is READY)


async def test_a_busy_engine_is_left_alone(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well-busy")
        await asyncio.sleep(2.5)  # two and a half times what a hung one gets
        assert (worker.now.state, worker.now.starts) == (READY, 1)


async def test_a_time_in_which_we_stood_still_ourselves_is_not_held_against_it(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well-busy")
        for _ in range(3):
            time.sleep(1.5)  # noqa: ASYNC251 - as a process does that is suspended
            await asyncio.sleep(0.5)
        assert (worker.now.state, worker.now.starts) == (READY, 1)


async def test_an_engine_that_we_lack_the_files_to_ask_is_taken_for_well(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        with no_more_files():
            await asyncio.sleep(2.5)  # two and a half times what a hung one gets
        await asyncio.sleep(0.5)
        assert (worker.now.state, worker.now.starts) == (READY, 1)


async def test_drain_and_admit_keep_the_engine(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        assert (await worker.drain()).state is DRAINING
        engine_process().kill()
        await until(worker, lambda status: status.starts == 2 and status.state is DRAINING)
        assert (await worker.admit()).state is READY
        await worker.drain()
        assert (await worker.load(Order(model="well"), drain_s=5)).state is READY


async def test_a_load_that_fails_lets_nobody_in_whom_an_operator_keeps_out(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        await worker.drain()
        await worker.load(Order(model="bad"), drain_s=0)
        status = await until(worker, lambda status: status.failure is not None and status.progress is None)
        assert (status.state, status.names) == (DRAINING, ("well",))
        assert (await loaded(worker, "other")).state is READY


async def test_adapters_are_put_back_after_a_crash(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    kept, lost = Adapter(name="a", path=str(tmp_path / "lora")), Adapter(name="b", path=str(tmp_path / "gone"))
    async with bench.worker(args=("--enable-lora",)) as worker:
        await loaded(worker, "well")
        (tmp_path / "gone").mkdir()
        await worker.put_adapter(kept)
        assert (await worker.put_adapter(lost)).adapters == (kept, lost)
        (tmp_path / "gone").rmdir()
        engine_process().kill()
        status = await until(worker, lambda status: status.starts == 2 and status.state is READY)
        assert status.adapters == (kept,)
        assert (await loaded(worker, "bad")).adapters == (kept,)  # back to what was served, all of it
        assert (await worker.drop_adapter("a")).adapters == ()
        await worker.put_adapter(kept)
        assert (await loaded(worker, "other")).adapters == ()


async def test_an_adapter_takes_the_place_of_another_one_of_its_name(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    old, new = Adapter(name="a", path=str(tmp_path)), Adapter(name="a", path=str(tmp_path / "new"))
    async with bench.worker(args=("--enable-lora",)) as worker:
        await loaded(worker, "well")
        for adapter in (old, old, new):
            assert (await worker.put_adapter(adapter)).adapters == (adapter,)


async def test_adapters_that_cannot_be_had(bench: Bench) -> None:
    async with bench.worker(args=("--enable-lora",)) as worker:
        with pytest.raises(NotOffered):
            await worker.put_adapter(Adapter(name="a", path="/a"))
        await loaded(worker, "well")
        with pytest.raises(LoadFailed, match="could not be loaded: No adapter found for /no/lora"):
            await worker.put_adapter(Adapter(name="a", path="/no/lora"))
        with pytest.raises(LoadFailed, match="the name of the model"):
            await worker.put_adapter(Adapter(name="well", path="/no/lora"))
        with pytest.raises(UnknownAdapter):
            await worker.drop_adapter("a")
        await loaded(worker, "well", args=())
        with pytest.raises(NotOffered, match="--enable-lora"):
            await worker.put_adapter(Adapter(name="a", path="/a"))


async def test_a_headless_member_is_ready_while_it_lives(bench: Bench) -> None:
    async with bench.worker(args=("--headless",)) as worker:
        status = await loaded(worker, "well-slow60")
        assert (status.state, status.engine_url) == (READY, None)
        assert (await loaded(worker, "bad")).failure is not None


async def test_after_its_last_word_it_takes_no_orders(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        await worker.stop(drain_s=0)
        assert family() == []
        assert (await worker.status(worker.now.version, 30)).state is STOPPED
        with pytest.raises(WorkerUnreachable):
            await worker.load(Order(model="well"), drain_s=0)


async def test_the_last_lines_are_read_and_followed(bench: Bench) -> None:
    async with bench.worker() as worker:
        await loaded(worker, "well")
        assert [piece async for piece in worker.logs(1)] == [b"asked for well\n"]
        assert b"".join([piece async for piece in worker.logs(100)]) == b"loading well\nasked for well\n"
        heard = b""
        following = worker.logs(1, follow=True)
        async for piece in following:
            heard += piece
            if heard == b"asked for well\n":
                await loaded(worker, "other")
            if b"asked for other" in heard:
                break
        await following.aclose()  # type: ignore[attr-defined]
        assert heard == b"asked for well\nloading other\nasked for other\n"


@pytest.mark.parametrize("when_s", [0.0, 0.05, 0.3])
async def test_leaving_while_it_loads_leaves_nothing(bench: Bench, when_s: float) -> None:
    async with bench.worker() as worker:
        await worker.load(Order(model="well-slow60"), drain_s=5)
        await asyncio.sleep(when_s)


async def test_a_taken_port_is_skipped_and_told(bench: Bench) -> None:
    blocker = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 24_200)
    async with blocker, bench.worker() as worker:
        assert (await loaded(worker, "well")).engine_url == "http://127.0.0.1:24201"
    assert bench.lines[0] == "Port 24200 is taken; trying the next."


async def test_a_port_that_was_taken_meanwhile_is_not_used(bench: Bench) -> None:
    async with bench.worker() as worker:
        blocker = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 24_200)
        async with blocker:
            assert (await loaded(worker, "well")).engine_url == "http://127.0.0.1:24201"


async def test_many_rounds_leave_nothing(bench: Bench) -> None:
    for _ in range(50):
        async with bench.worker() as worker:
            assert (await loaded(worker, "well")).engine_url == "http://127.0.0.1:24200"
            await worker.release(drain_s=0)
        bench.seen.clear()
    assert sorted(path.name for path in bench.folder.rglob("*")) == ["logs", "w.log"]
