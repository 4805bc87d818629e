"""Whether two bodies ask the same: key order and white space do not matter, values do."""

from hashlib import sha256

import msgspec

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode


def fingerprint(body: bytes) -> bytes:
    """What JSON allows and no number or text of ours can hold (`1e999`) is the same if its bytes are."""
    try:
        return sha256(_encode(_decode(body))).digest()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return sha256(body).digest()
