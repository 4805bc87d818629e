"""What happens in the same moment: room that comes while somebody waits, hang-ups during a hand-over, ends that meet."""

import asyncio

from app.engines.scripted import Scripted
from tests.gateway.conftest import Build, asking
from tests.gateway.test_admission import ONE_AT_A_TIME, Crowd, stalling
from tests.support.until import until

NORMAL = {b"x-priority": b"normal"}


# --- no slot idles while somebody waits for it --------------------------------------------------------------------


async def test_the_reserve_is_there_for_an_interactive_call_also_while_others_wait(build: Build) -> None:
    settings = {"MAX_CONCURRENT_REQUESTS": 2, "INTERACTIVE_SHARE": 0.5}
    house = await build(settings=settings, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running(headers=NORMAL)
        await crowd.waiting(headers=NORMAL)
        await crowd.running(headers={b"x-priority": b"interactive"})
        house.engine.go_on.set()


async def test_a_newcomer_takes_the_room_that_a_returning_call_avoids(build: Build) -> None:
    sick = Scripted(stall_at=0, break_at=0)
    house = await build(settings={**ONE_AT_A_TIME, "ROUTING_POLICY": "round_robin"}, sick=sick, well=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running(user="one")
        await crowd.running(user="two")
        sick.go_on.set()
        await until(lambda: house.gateway.admission.waiting == 1)
        sick.break_at = None
        newcomer = await house.post(asking(user="three"))
        house.engines["well"].go_on.set()
    assert (newcomer.status, newcomer.headers["x-gllm-replica"]) == (200, "sick")
