"""The chain of a prompt: equal as far as two prompts are, and short however long they are."""

from hypothesis import given
from hypothesis import strategies as st

from app.gateway.routing.chain import BLOCK, LONGEST, chain_of, prefix_of
from app.generation import Route
from app.tenant import Tenant
from app.wire.parsing import parse

SCOPE = ("tenant", "model")


def common(one: bytes, other: bytes) -> int:
    pairs = zip(chain_of(one, SCOPE), chain_of(other, SCOPE), strict=False)
    return sum(a == b for a, b in pairs)


def reach(steps: int) -> int:
    """The length of the shortest prompt with so many steps."""
    low, high = 0, LONGEST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(chain_of(b"x" * middle, SCOPE)) >= steps else (middle + 1, high)
    return low


@given(st.binary(max_size=5_000), st.binary(min_size=1, max_size=600), st.binary(max_size=600))
def test_two_prompts_share_the_steps_that_end_before_they_part(shared: bytes, one: bytes, other: bytes) -> None:
    first, second = shared + b"a" + one, shared + b"b" + other
    assert common(first, second) == len(chain_of(shared, SCOPE))


@given(st.integers(BLOCK, LONGEST))
def test_at_most_an_eighth_or_a_block_of_what_is_shared_goes_unseen(length: int) -> None:
    steps = len(chain_of(b"x" * length, SCOPE))
    assert length - reach(steps) < max(BLOCK, length / 8)


def test_a_chain_is_short_however_long_the_prompt() -> None:
    assert len(chain_of(b"x" * (BLOCK - 1), SCOPE)) == 0
    assert len(chain_of(b"x" * 1_500, SCOPE)) == 5
    assert len(chain_of(b"x" * LONGEST, SCOPE)) < 50
    assert chain_of(b"x" * LONGEST, SCOPE) == chain_of(b"x" * 2 * LONGEST, SCOPE)


def test_a_step_stands_for_all_that_came_before_it() -> None:
    block = b"x" * BLOCK
    first, second = chain_of(block * 2, SCOPE)
    assert first != second
    assert chain_of(b"y" * BLOCK + block, SCOPE)[1] != second


def test_tenants_and_models_do_not_meet() -> None:
    body = b'{"messages":[{"role":"user","content":"%b"}]}' % (b"x" * 3_000)
    request = parse(Route.CHAT, body)
    chains = {prefix_of(request, model, Tenant(name)) for model in ("m", "n") for name in ("a", "b")}
    assert len(chains) == 4
    assert prefix_of(request, "m", Tenant("a", weight=2)) in chains
