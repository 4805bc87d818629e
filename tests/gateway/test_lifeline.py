"""The work lasts as long as its client: its body, its hang-up at any moment, and whose cancel is whose."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.errors import BodyTooLarge, BodyTooSlow, ClientGone
from app.gateway.lifeline import Lifeline
from app.reliability.watch import Watch
from tests.support.clock import FakeClock
from tests.support.until import until

LIMIT = 100


class Client:
    """What a server tells of one: parts of a body, then silence or a hang-up."""

    def __init__(self, *parts: bytes, whole: bool = True) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for index, part in enumerate(parts):
            self.sends(part, more=not whole or index < len(parts) - 1)
        self.taken = 0

    def sends(self, part: bytes, *, more: bool) -> None:
        self.messages.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def hangs_up(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> dict[str, Any]:
        message = await self.messages.get()
        self.taken += 1
        return message


class Line:
    """Our own server's side of a connection."""

    began = 0.0

    def __init__(self) -> None:
        self.on_lost: Callable[[], None] | None = None
        self.aborted = 0
        self.last = False

    def answer_is_last(self) -> None:
        self.last = True

    def abort(self) -> None:
        self.aborted += 1

    def whole_body(self) -> None:
        return None

    def tells(self, message: dict[str, Any]) -> bool:
        return False

    def takes(self, part: bytes) -> bool:
        return False

    def lost(self) -> None:
        if self.on_lost is not None:
            self.on_lost()


class Scene:
    """A client, a watch, and a piece of work inside a lifeline."""

    def __init__(self, *, plain: bool, parts: tuple[bytes, ...] = (b"{}",), whole: bool = True) -> None:
        self.clock = FakeClock()
        self.watch = Watch(self.clock)
        self.client = Client(*parts, whole=whole)
        self.line = None if plain else Line()
        self.lifeline = Lifeline(self.client.receive, self.watch, self.line)
        self.working = asyncio.Event()
        self.cleaned = 0

    def hang_up(self) -> None:
        """As either kind of server tells it."""
        if self.line is None:
            self.client.hangs_up()
        else:
            self.client.hangs_up()
            self.line.lost()

    async def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        async with self.lifeline:
            body = await self.lifeline.body(LIMIT, 10)
            self.working.set()
            try:
                await work()
            finally:
                self.cleaned += 1
            return body

    def start(self, work: Callable[[], Awaitable[Any]] | None = None) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.run(work or for_ever))

    def assert_given_back(self) -> None:
        assert len(self.watch) == 0
        if self.line is not None:
            assert self.line.on_lost is None
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


Build = Callable[..., Scene]


@pytest.fixture(params=[True, False], ids=["any server", "our server"])
def build(request: pytest.FixtureRequest) -> Build:
    return lambda **how: Scene(plain=request.param, **how)


async def nothing() -> None:
    await asyncio.sleep(0)


async def for_ever() -> None:
    await asyncio.Event().wait()


# --- the body -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(b"",), (b"abc",), (b"a", b"", b"bc"), (b"", b"abc", b"")])
async def test_a_body_is_the_whole_of_its_parts(build: Build, parts: tuple[bytes, ...]) -> None:
    scene = build(parts=parts)
    assert await scene.run(nothing) == b"".join(parts)
    assert scene.lifeline.complete
    scene.assert_given_back()


@pytest.mark.parametrize("parts", [(b"x" * LIMIT,), (b"x" * (LIMIT - 1), b"x"), (b"x",) * LIMIT])
async def test_a_body_may_be_as_large_as_the_limit(build: Build, parts: tuple[bytes, ...]) -> None:
    assert len(await build(parts=parts).run(nothing)) == LIMIT


@pytest.mark.parametrize("parts", [(b"x" * (LIMIT + 1),), (b"x" * LIMIT, b"x"), (b"x" * 60,) * 50])
async def test_a_body_that_is_larger_is_refused_while_it_arrives(build: Build, parts: tuple[bytes, ...]) -> None:
    scene = build(parts=parts)
    with pytest.raises(BodyTooLarge):
        await scene.run(nothing)
    assert scene.client.taken <= 2
    assert not scene.lifeline.complete
    scene.assert_given_back()


async def test_a_body_that_does_not_come_in_time_is_refused(build: Build) -> None:
    scene = build(parts=(b"{",), whole=False)
    task = scene.start()
    await until(lambda: scene.client.taken == 1)
    scene.clock.advance(9.9)
    scene.watch.sweep()
    await asyncio.sleep(0)
    assert not task.done()
    scene.clock.advance(0.1)
    scene.watch.sweep()
    with pytest.raises(BodyTooSlow):
        await task
    assert not scene.lifeline.complete
    if scene.line is not None:
        assert scene.line.aborted == 0, "there is still an answer to give"
    scene.assert_given_back()


async def test_dripping_does_not_buy_time(build: Build) -> None:
    scene = build(parts=(b"{",), whole=False)
    task = scene.start()
    for drops in range(1, 11):
        await until(lambda drops=drops: scene.client.taken == drops)  # type: ignore[misc]
        assert not task.done()
        scene.clock.advance(1)
        scene.client.sends(b" ", more=True)
        scene.watch.sweep()
    with pytest.raises(BodyTooSlow):
        await task


async def test_once_the_body_is_there_nobody_is_in_a_hurry(build: Build) -> None:
    scene = build()
    task = scene.start()
    await scene.working.wait()
    scene.clock.advance(1e9)
    scene.watch.sweep()
    await asyncio.sleep(0)
    assert not task.done()
    scene.hang_up()
    with pytest.raises(ClientGone):
        await task


async def test_an_answer_to_half_a_request_is_the_connections_last(build: Build) -> None:
    """What of it is still on its way would be taken for the next request."""
    whole, half = build(), build(parts=(b"x" * 60,) * 5)
    await whole.run(nothing)
    with pytest.raises(BodyTooLarge):
        await half.run(nothing)
    assert [whole.lifeline.answer_is_last(), half.lifeline.answer_is_last()] == [False, True]
    assert whole.line is None or not whole.line.last
    assert half.line is None or half.line.last


# --- hang-ups -----------------------------------------------------------------------------------------------------


async def test_a_hang_up_before_the_body_ends_the_work(build: Build) -> None:
    scene = build(parts=())
    scene.client.hangs_up()
    with pytest.raises(ClientGone):
        await scene.run(nothing)
    assert not scene.working.is_set()
    scene.assert_given_back()


async def test_a_hang_up_in_the_middle_of_the_body_ends_the_work(build: Build) -> None:
    scene = build(parts=(b"{",), whole=False)
    task = scene.start()
    await until(lambda: scene.client.taken == 1)
    scene.hang_up()
    with pytest.raises(ClientGone):
        await task
    assert not scene.working.is_set()
    scene.assert_given_back()


async def test_a_hang_up_after_the_body_ends_the_work_and_lets_it_clean_up(build: Build) -> None:
    scene = build()
    task = scene.start(for_ever)
    await scene.working.wait()
    scene.hang_up()
    with pytest.raises(ClientGone):
        await task
    assert scene.cleaned == 1
    assert task.cancelling() == 0
    scene.assert_given_back()


async def test_a_hang_up_after_the_work_is_nobodys_business(build: Build) -> None:
    scene = build()
    assert await scene.run(nothing) == b"{}"
    scene.hang_up()
    await asyncio.sleep(0)
    scene.assert_given_back()


async def test_a_hang_up_while_the_last_step_ends_does_not_escape_as_a_cancel(build: Build) -> None:
    """It may meet the work anywhere, also in its very last step: then either end is true, and nothing else is."""
    for steps in range(12):
        scene = build()

        async def work(steps: int = steps) -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        task = scene.start(work)
        for _ in range(6):
            await asyncio.sleep(0)
        scene.hang_up()
        done = await asyncio.gather(task, return_exceptions=True)
        assert done[0] == b"{}" or isinstance(done[0], ClientGone)
        assert not task.cancelled()
        scene.assert_given_back()


async def test_two_hang_ups_are_one(build: Build) -> None:
    scene = build()
    task = scene.start(for_ever)
    await scene.working.wait()
    scene.hang_up()
    scene.hang_up()
    with pytest.raises(ClientGone):
        await task
    assert task.cancelling() == 0


async def test_a_hang_up_does_not_hide_how_the_work_failed(build: Build) -> None:
    scene = build()

    async def fails() -> None:
        try:
            await for_ever()
        finally:
            raise ValueError("while cleaning up")

    task = scene.start(fails)
    await scene.working.wait()
    scene.hang_up()
    with pytest.raises(ValueError, match="cleaning"):
        await task
    assert task.cancelling() == 0
    scene.assert_given_back()


async def test_work_that_fails_by_itself_fails_as_it_does(build: Build) -> None:
    scene = build()

    async def fails() -> None:
        raise ValueError("by itself")

    with pytest.raises(ValueError, match="itself"):
        await scene.run(fails)
    scene.assert_given_back()


async def test_after_a_hang_up_the_task_can_go_on_to_other_things(build: Build) -> None:
    """The edge tells the record and the log; with a pending cancel it could not await anything."""
    scene = build()

    async def edge() -> str:
        try:
            await scene.run(for_ever)
        except ClientGone:
            await asyncio.sleep(0)
            async with asyncio.timeout(1):
                await asyncio.sleep(0)
        return "told"

    task = asyncio.create_task(edge())
    await scene.working.wait()
    scene.hang_up()
    assert await task == "told"


async def test_our_server_is_told_to_close_without_delay() -> None:
    scene = Scene(plain=False)
    task = scene.start(for_ever)
    await scene.working.wait()
    scene.hang_up()
    with pytest.raises(ClientGone):
        await task
    assert scene.line is not None
    assert scene.line.aborted == 1


async def test_our_server_costs_no_second_task() -> None:
    scene = Scene(plain=False)
    task = scene.start(for_ever)
    await scene.working.wait()
    assert asyncio.all_tasks() == {task, asyncio.current_task()}
    scene.hang_up()
    with pytest.raises(ClientGone):
        await task


# --- whose cancel -------------------------------------------------------------------------------------------------


async def test_someone_elses_cancel_stays_a_cancel(build: Build) -> None:
    scene = build()
    task = scene.start(for_ever)
    await scene.working.wait()
    task.cancel("shutting down")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert scene.cleaned == 1
    scene.assert_given_back()


@pytest.mark.parametrize("first", ["theirs", "ours"])
async def test_when_both_come_together_someone_elses_cancel_stays(build: Build, first: str) -> None:
    scene = build()
    task = scene.start(for_ever)
    await scene.working.wait()
    if first == "theirs":
        task.cancel()
        scene.hang_up()
    else:
        scene.hang_up()
        if scene.line is None:
            await until(lambda: scene.client.taken == 2)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    scene.assert_given_back()


async def test_a_cancel_while_the_body_arrives_stays_a_cancel(build: Build) -> None:
    scene = build(parts=(b"{",), whole=False)
    task = scene.start()
    await until(lambda: scene.client.taken == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scene.assert_given_back()


async def test_a_time_limit_inside_the_work_keeps_its_own_cancel(build: Build) -> None:
    scene = build()

    async def limited() -> None:
        async with asyncio.timeout(0):
            await for_ever()

    with pytest.raises(TimeoutError):
        await scene.run(limited)
    scene.assert_given_back()


async def test_a_time_limit_around_the_work_keeps_its_own_cancel(build: Build) -> None:
    scene = build()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await scene.run(for_ever)
    scene.assert_given_back()


async def test_a_hang_up_under_a_time_limit_is_still_a_hang_up(build: Build) -> None:
    scene = build()

    async def limited() -> None:
        async with asyncio.timeout(100):
            await scene.run(for_ever)

    task = asyncio.create_task(limited())
    await scene.working.wait()
    scene.hang_up()
    with pytest.raises(ClientGone):
        await task


# --- writing ------------------------------------------------------------------------------------------------------


async def test_a_reader_that_takes_nothing_for_too_long_is_gone(build: Build) -> None:
    scene = build()

    async def write() -> None:
        scene.lifeline.waits(5)
        await for_ever()

    task = scene.start(write)
    await scene.working.wait()
    await asyncio.sleep(0)
    scene.clock.advance(4.9)
    scene.watch.sweep()
    await asyncio.sleep(0)
    assert not task.done()
    scene.clock.advance(0.1)
    scene.watch.sweep()
    with pytest.raises(ClientGone):
        await task
    if scene.line is not None:
        assert scene.line.aborted == 1, "what it has not taken is not worth holding"
    scene.assert_given_back()


async def test_each_write_gets_its_own_time(build: Build) -> None:
    scene = build()
    go_on = asyncio.Event()

    async def write() -> None:
        for _ in range(10):
            scene.lifeline.waits(5)
            await go_on.wait()
            go_on.clear()
        scene.lifeline.waits_no_more()

    task = scene.start(write)
    await scene.working.wait()
    for _ in range(10):
        await asyncio.sleep(0)
        scene.clock.advance(4)
        scene.watch.sweep()
        go_on.set()
        await asyncio.sleep(0)
    await task
    scene.assert_given_back()


async def test_an_overdue_wait_is_cut_once_however_often_it_is_swept(build: Build) -> None:
    scene = build()

    async def write() -> None:
        scene.lifeline.waits(5)
        try:
            await for_ever()
        finally:
            for _ in range(3):
                scene.watch.sweep()
                await asyncio.sleep(0)

    task = scene.start(write)
    await scene.working.wait()
    await asyncio.sleep(0)
    scene.clock.advance(6)
    scene.watch.sweep()
    with pytest.raises(ClientGone):
        await task
    assert task.cancelling() == 0
