"""One run's frames, and those who read them while they come."""

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import DeadlinePassed, EngineBroken, InvalidRequest, NotReplayable
from app.reliability.recording import BLOCK_BYTES, Reader, Recording
from app.reliability.watch import Watch
from tests.support.clock import FakeClock
from tests.support.until import until

FOREVER = float("inf")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def watch(clock: FakeClock) -> Watch:
    return Watch(clock)


def recording(max_bytes: int = 10_000, max_frames: int = 100) -> Recording:
    return Recording(max_bytes, max_frames)


async def all_of(reader: Reader) -> list[bytes]:
    found = []
    with reader:
        while (block := await reader.next()) is not None:
            found.append(block)
    return found


async def test_who_comes_late_gets_all_from_the_beginning(watch: Watch) -> None:
    tape = recording()
    tape.add([b"a", b"b"])
    late = asyncio.create_task(all_of(tape.reader(0, FOREVER, watch)))
    await until(lambda: tape.readers == 1)
    tape.add([b"c"])
    tape.end()
    assert b"".join(await late) == b"abc"
    assert (tape.readers, len(watch)) == (0, 0)


async def test_who_has_seen_some_gets_the_rest(watch: Watch) -> None:
    tape = recording()
    tape.add([b"a", b"b", b"c"])
    tape.end()
    assert await all_of(tape.reader(2, FOREVER, watch)) == [b"c"]
    assert await all_of(tape.reader(3, FOREVER, watch)) == []


async def test_more_than_there_is_cannot_have_been_seen(watch: Watch) -> None:
    tape = recording()
    tape.add([b"a"])
    tape.end()
    with pytest.raises(InvalidRequest):
        await all_of(tape.reader(2, FOREVER, watch))


async def test_an_error_comes_after_all_that_was_said_to_everybody(watch: Watch) -> None:
    tape = recording()
    tape.add([b"a"])
    error = EngineBroken()
    tape.end(error)
    for _ in range(2):
        with tape.reader(0, FOREVER, watch) as reader:
            assert await reader.next() == b"a"
            with pytest.raises(EngineBroken) as raised:
                await reader.next()
            assert raised.value is error


async def test_who_catches_up_gets_it_in_pieces(watch: Watch) -> None:
    tape = recording(10 * BLOCK_BYTES)
    tape.add([b"x" * (BLOCK_BYTES // 2)] * 5)
    tape.end()
    sizes = [len(block) for block in await all_of(tape.reader(0, FOREVER, watch))]
    assert sizes == [BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES // 2]


async def test_a_reader_whose_time_is_over_gives_up_alone(watch: Watch, clock: FakeClock) -> None:
    tape = recording()
    hasty = asyncio.create_task(all_of(tape.reader(0, clock() + 5, watch)))
    patient = asyncio.create_task(all_of(tape.reader(0, FOREVER, watch)))
    await until(lambda: tape.readers == 2)
    clock.advance(5)
    watch.sweep()
    with pytest.raises(DeadlinePassed):
        await hasty
    tape.add([b"a"])
    tape.end()
    assert await patient == [b"a"]


async def test_below_the_caps_nobody_is_waited_for(watch: Watch) -> None:
    tape = recording(max_bytes=3, max_frames=3)
    with tape.reader(0, FOREVER, watch):
        tape.add([b"a", b"b", b"c"])
        await tape.room()
    assert tape.kept


@pytest.mark.parametrize("caps", [(3, 100), (100, 3)], ids=["bytes", "frames"])
async def test_past_a_cap_the_run_waits_for_the_slowest(watch: Watch, caps: tuple[int, int]) -> None:
    tape = recording(*caps)
    with tape.reader(0, FOREVER, watch) as fast, tape.reader(0, FOREVER, watch) as slow:
        tape.add([b"a", b"b", b"c", b"d"])
        assert not tape.kept
        waiting = asyncio.create_task(tape.room())
        assert await fast.next() == b"abcd"
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert await slow.next() == b"abcd"
        await waiting
    with pytest.raises(NotReplayable):
        tape.reader(0, FOREVER, watch)
    assert tape.frames == [b"b", b"c", b"d"]


async def test_past_a_cap_a_reader_that_leaves_makes_room(watch: Watch) -> None:
    tape = recording(max_frames=1)
    with ExitStack() as slow, tape.reader(0, FOREVER, watch) as fast:
        slow.enter_context(tape.reader(0, FOREVER, watch))
        tape.add([b"a", b"b"])
        waiting = asyncio.create_task(tape.room())
        await fast.next()
        await asyncio.sleep(0)
        assert not waiting.done()
        slow.close()
        await waiting


async def test_past_a_cap_and_without_readers_what_is_there_stays_for_who_comes_back(watch: Watch) -> None:
    tape = recording(max_frames=2)
    with tape.reader(0, FOREVER, watch) as reader:
        tape.add([b"a", b"b"])
        await reader.next()
    tape.add([b"c", b"d"])
    waiting = asyncio.create_task(tape.room())
    with tape.reader(2, FOREVER, watch) as back:
        assert await back.next() == b"cd"
        await waiting
    with pytest.raises(NotReplayable):
        tape.reader(1, FOREVER, watch)


async def test_for_those_who_read_along_elsewhere_it_says_where_a_piece_begins(watch: Watch) -> None:
    tape = recording(max_frames=2)
    with tape.reader(0, FOREVER, watch) as reader:
        tape.add([b"a", b"b", b"c"])
        await reader.next()
        await tape.room()
    assert tape.since(0, 100) == (1, [b"b", b"c"])
    assert tape.since(2, 100) == (2, [b"c"])
    assert tape.since(1, 1) == (1, [b"b"])
    assert tape.since(3, 100) == (3, [])


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    joins=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4),
    paces=st.lists(st.integers(0, 5), min_size=5, max_size=5),
    cap=st.integers(1, 40),
)
def test_every_reader_reads_the_same_and_no_more_is_held_than_allowed(
    sizes: list[int], joins: list[tuple[int, int]], paces: list[int], cap: int
) -> None:
    """Whenever they come, wherever they begin, however slow they are."""
    frames = [bytes([65 + index % 26]) * size for index, size in enumerate(sizes)]
    whole = b"".join(frames)

    async def scene() -> None:
        watch = Watch(FakeClock())
        tape = Recording(cap, 1_000)

        async def read(seen: int, pace: int) -> None:
            try:
                reader = tape.reader(seen, FOREVER, watch)
            except NotReplayable:
                assert not tape.kept
                return
            got = b""
            with reader:
                while (block := await reader.next()) is not None:
                    got += block
                    for _ in range(pace):
                        await asyncio.sleep(0)
            assert got == b"".join(frames[seen:])

        async with asyncio.TaskGroup() as readers:
            readers.create_task(read(0, paces[0]))
            await asyncio.sleep(0)
            for index, frame in enumerate(frames):
                for (at, seen), pace in zip(joins, paces[1:], strict=False):
                    if at == index:
                        readers.create_task(read(min(seen, index), pace))
                tape.add([frame])
                await tape.room()
                assert sum(map(len, tape.frames)) <= cap
            tape.end()
        assert tape.kept is (len(whole) <= cap)
        assert len(watch) == 0

    asyncio.run(scene())
