"""LoRA adapters: on all workers that serve the model they belong on, or on none."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from app.cluster.control import Adapter, Status
from app.cluster.member import Member
from app.cluster.members import Members
from app.errors import ClusterError, InvalidRequest, LoadInProgress, NoWorkers, UnknownAdapter, UnknownModel

SEEN_WITHIN_S = 10.0
"""By this gateway, once it is loaded."""
COME_AGAIN_S = 5.0


class Adapters:
    def __init__(self, members: Members) -> None:
        self._members = members

    def parent_of(self, name: str) -> str | None:
        """The model that an adapter is on top of."""
        for member in self._members.present:
            if member.status and member.status.names and member.bears(name):
                return member.status.names[0]
        return None

    async def put(self, adapter: Adapter, model: str | None) -> tuple[str, ...]:
        """Returns the names of the workers that have it now. What succeeded is taken back when one of them fails."""
        await self._expect_rest()
        members = self._with_model(model)
        if any(adapter.name in each.status.names for each in self._members.present if each.status):
            raise InvalidRequest(f"{adapter.name} is the name of a model.", param="name")
        before = [_borne(each, adapter.name) for each in members]
        failures = await _all(each.worker.put_adapter(adapter) for each in members)
        if any(failures):
            ended = zip(members, before, failures, strict=True)
            changed = [(each, former) for each, former, failure in ended if failure is None and former != adapter]
            await _all(_taken_back(each, adapter, former) for each, former in changed)
            raise next(filter(None, failures))
        await self._seen(members, lambda member: _answers_to(member, adapter.name))
        return tuple(each.name for each in members)

    async def drop(self, name: str) -> tuple[str, ...]:
        await self._expect_rest()
        members = [each for each in self._members.present if each.bears(name)]
        if not members:
            raise UnknownAdapter(param="name")
        failures = await _all(each.worker.drop_adapter(name) for each in members)
        if any(failures):
            raise next(filter(None, failures))
        await self._seen(members, lambda member: not _answers_to(member, name))
        return tuple(each.name for each in members)

    async def _expect_rest(self) -> None:
        if not await self._members.at_rest():
            raise LoadInProgress(retry_after=COME_AGAIN_S)

    def _with_model(self, model: str | None) -> list[Member]:
        ready = [each for each in self._members.present if each.ready and each.status is not None]
        models = {name for each in ready if each.status for name in each.status.names[:1]}
        if not ready:
            raise NoWorkers
        if model is None and len(models) > 1:
            raise InvalidRequest("Several models are served here: name one in 'model'.", param="model")
        name = model if model is not None else next(iter(models))
        found = [each for each in ready if each.status is not None and name in each.status.names]
        if not found:
            raise UnknownModel(param="model")
        return found

    async def _seen(self, members: list[Member], true: Callable[[Member], bool]) -> None:
        """Until the fleet goes by it; no longer than a while, because a worker may have gone meanwhile."""
        try:
            async with asyncio.timeout(SEEN_WITHIN_S):
                for member in members:
                    while member.ready and not true(member):
                        await member.news()
        except TimeoutError:
            return


def _borne(member: Member, name: str) -> Adapter | None:
    adapters = member.status.adapters if member.status is not None else ()
    return next((each for each in adapters if each.name == name), None)


def _taken_back(member: Member, adapter: Adapter, former: Adapter | None) -> Awaitable[Status]:
    return member.worker.drop_adapter(adapter.name) if former is None else member.worker.put_adapter(former)


def _answers_to(member: Member, name: str) -> bool:
    return member.replica is not None and name in member.replica.models


async def _all(works: Iterable[Awaitable[Status]]) -> list[ClusterError | None]:
    """How each of them ended."""

    async def ended(work: Awaitable[Status]) -> ClusterError | None:
        try:
            await work
        except ClusterError as error:
            return error
        return None

    return await asyncio.gather(*map(ended, works))
