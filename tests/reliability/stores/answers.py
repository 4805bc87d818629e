"""What tests of stores of answers share."""

from app.reliability.recording import Recording
from app.reliability.stores.answers import AnswerStore, Claim, Elsewhere, Kept, Key

KEPT_S = 1_000.0
GENEROUS = 2**20

KEY = Key("scope", b"asked")
OTHER_BODY = Key("scope", b"other")
OTHER_KEY = Key("other", b"asked")


def recorded(*frames: bytes, max_bytes: int = GENEROUS) -> Recording:
    tape = Recording(max_bytes, 100)
    tape.replica, tape.attempts = "gpu-1", 2
    tape.add(list(frames))
    return tape


async def claimed(store: AnswerStore, key: Key = KEY) -> Claim:
    claim = await store.claim(key)
    assert not isinstance(claim, Kept | Elsewhere)
    return claim
