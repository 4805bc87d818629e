"""Keys: made once, shown once, and from then on known by their digest alone."""

import secrets
from hashlib import sha256

PREFIX = "gllm-"
"""So that scanners of repositories can find a lost one."""

ENTROPY_BYTES = 32
ID_LENGTH = 12


def mint() -> str:
    return PREFIX + secrets.token_urlsafe(ENTROPY_BYTES)


def digest_of(key: bytes) -> bytes:
    """Without salt or stretching: what is long and random cannot be guessed from its digest."""
    return sha256(key).digest()


def id_of(digest: bytes) -> str:
    """What a key is called in lists."""
    return digest.hex()[:ID_LENGTH]
