"""One contract over both stores of answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from app.errors import EngineBroken, GatewayError, KeyInFlight, KeyReused, WrongMethod
from app.generation import Call, Route
from app.reliability.stores.answer_file import AnswerFile
from app.reliability.stores.answer_keys import AnswerKeys
from app.reliability.stores.answers import AnswerStore, Claim, Elsewhere, Failure, Kept, Key
from app.reliability.stores.embedded import EmbeddedAnswers
from app.reliability.stores.shared import SharedAnswers
from app.tenant import Tenant
from app.wire.errors import ERRORS
from tests.reliability.stores.answers import GENEROUS, KEPT_S, KEY, OTHER_BODY, OTHER_KEY, claimed, recorded
from tests.reliability.stores.conftest import Stores
from tests.support.clock import FakeClock

LEASE_S = 10.0

Make = Callable[[], AnswerStore]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["embedded", "shared"])
async def make(request: pytest.FixtureRequest, tmp_path: Path, stores: Stores, clock: FakeClock) -> AsyncIterator[Make]:
    """Gateways, each with its store: over one file, or over one Redis."""
    async with AsyncExitStack() as stack:

        def embedded() -> AnswerStore:
            store = EmbeddedAnswers(AnswerFile(tmp_path / "state" / "answers.sqlite", GENEROUS, KEPT_S, clock))
            stack.push_async_callback(store.aclose)
            return store

        def shared() -> AnswerStore:
            return SharedAnswers(AnswerKeys(stores(request.getfixturevalue("redis_url")), clock, KEPT_S, LEASE_S))

        if request.param == "shared":
            await stores(request.getfixturevalue("redis_url")).command("FLUSHDB")
        yield embedded if request.param == "embedded" else shared


@pytest.fixture
def store(make: Make) -> AnswerStore:
    return make()


# --- both ---------------------------------------------------------------------------------------------------------


async def test_a_finished_answer_is_there_for_all_who_ask_the_same(store: AnswerStore) -> None:
    claim = await claimed(store)
    await claim.finish(recorded(b"a", b"b"))
    for ask in (store.claim, store.find, store.claim):
        assert await ask(KEY) == Kept("gpu-1", 2, [b"a", b"b"])


async def test_it_is_there_after_a_restart_too(make: Make) -> None:
    await (await claimed(make())).finish(recorded(b"a"))
    assert await make().claim(KEY) == Kept("gpu-1", 2, [b"a"])


async def test_a_claimed_key_is_not_claimed_twice(store: AnswerStore) -> None:
    await claimed(store)
    with suppress(KeyInFlight):
        assert isinstance(await store.claim(KEY), Elsewhere)


@pytest.mark.parametrize("finished", [False, True])
async def test_another_body_is_refused_whether_the_first_is_finished_or_not(store: AnswerStore, finished: bool) -> None:
    claim = await claimed(store)
    if finished:
        await claim.finish(recorded(b"a"))
    with pytest.raises(KeyReused):
        await store.claim(OTHER_BODY)
    await claimed(store, OTHER_KEY)


async def test_a_released_key_is_free_for_any_body(store: AnswerStore) -> None:
    claim = await claimed(store)
    await claim.release(EngineBroken())
    assert await store.find(KEY) is None
    await claimed(store, OTHER_BODY)


async def test_looking_claims_nothing(store: AnswerStore) -> None:
    assert await store.find(KEY) is None
    await claimed(store)


async def test_an_answer_that_is_too_large_leaves_a_key_that_stays_used(store: AnswerStore) -> None:
    claim = await claimed(store)
    await claim.finish(recorded(b"a" * 20, max_bytes=10))
    found = await store.claim(KEY)
    assert isinstance(found, Kept)
    assert found.frames is None
    with pytest.raises(KeyReused):
        await store.claim(OTHER_BODY)


async def test_finishing_twice_is_finishing_once(store: AnswerStore) -> None:
    claim = await claimed(store)
    for _ in range(2):
        await claim.finish(recorded(b"a"))
    assert await store.claim(KEY) == Kept("gpu-1", 2, [b"a"])


async def test_many_who_ask_at_once_are_one_who_holds_the_key(store: AnswerStore) -> None:
    found = await asyncio.gather(*(store.claim(KEY) for _ in range(30)), return_exceptions=True)
    assert sum(not isinstance(each, KeyInFlight | Elsewhere) for each in found) == 1


def test_scopes_differ_by_tenant_route_and_key_and_say_none_of_them() -> None:
    calls = [
        Call("req", route, "demo", b"{}", 0.0, tenant=Tenant(tenant), key=key, fingerprint=b"f")
        for route in (Route.CHAT, Route.COMPLETIONS)
        for tenant, key in (("a", "bc"), ("ab", "c"), ("a", "b"))
    ]
    assert len({Key.of(call).scope for call in calls}) == len(calls)
    assert all(len(Key.of(call).scope) == 64 for call in calls)


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not WrongMethod])
def test_an_error_is_the_same_elsewhere(kind: type[GatewayError]) -> None:
    """Whichever a claimed call may end with, and what of it the client is told. A wrong method claims nothing."""
    error = kind("Said so.", param="messages", code="invalid_type", retry_after=1.5)
    there = Failure.of(error).error
    assert type(there) is kind
    assert vars(there) == vars(error)


def test_an_error_of_a_newer_gateway_is_an_error_here() -> None:
    assert Failure("SomethingNew", "It failed.").error.message == "It failed."


class OneAnswerAKey(RuleBasedStateMachine):
    """However claims, ends, failures and time are mixed."""

    def __init__(self, store: AnswerStore, clock: FakeClock, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.store = store
        self.clock = clock
        self.loop = loop
        self.held: dict[str, tuple[bytes, Claim]] = {}
        self.answers: dict[str, tuple[bytes, Kept, float]] = {}
        self.made = 0

    @rule(scope=st.sampled_from("ab"), body=st.sampled_from([b"1", b"2"]))
    def ask(self, scope: str, body: bytes) -> None:
        """The key is free, held, answered or another's: each has one right answer."""
        found: object
        try:
            found = self.loop.run_until_complete(self.store.claim(Key(scope, body)))
        except (KeyReused, KeyInFlight) as error:
            found = type(error)
        if scope in self.held:
            assert found is (KeyInFlight if self.held[scope][0] == body else KeyReused)
        elif scope in self.answers:
            assert found == self.answers[scope][1] if self.answers[scope][0] == body else found is KeyReused
        else:
            self.held[scope] = (body, cast(Claim, found))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        scope = data.draw(st.sampled_from(sorted(self.held)))
        body, claim = self.held.pop(scope)
        self.made += 1
        recording = recorded(b"%d" % self.made)
        self.loop.run_until_complete(claim.finish(recording))
        self.answers[scope] = (body, Kept.of(recording), self.clock() + KEPT_S)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        _, claim = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        self.loop.run_until_complete(claim.release(EngineBroken()))

    @rule(seconds=st.sampled_from([1.0, KEPT_S / 2, KEPT_S]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.answers = {scope: each for scope, each in self.answers.items() if each[2] > self.clock()}


def test_whatever_happens_a_key_has_one_holder_and_one_answer(tmp_path: Path) -> None:
    made: list[EmbeddedAnswers] = []

    def machine() -> OneAnswerAKey:
        clock = FakeClock()
        path = tmp_path / f"{len(made)}.sqlite"
        made.append(EmbeddedAnswers(AnswerFile(path, GENEROUS, KEPT_S, clock), limit_s=30))
        return OneAnswerAKey(made[-1], clock, runner.get_loop())

    with asyncio.Runner() as runner:
        try:
            run_state_machine_as_test(
                machine,  # type: ignore[arg-type]  # a factory will do
                settings=settings(max_examples=30, stateful_step_count=25, deadline=None),
            )
        finally:
            for store in made:
                runner.run(store.aclose())
