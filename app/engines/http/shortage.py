"""What a machine may have too little of to reach an engine, which is none of the engine's doing."""

from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM

OURS = {EMFILE, ENFILE, ENOBUFS, ENOMEM}


def is_ours(error: BaseException | None) -> bool:
    """Libraries wrap what the system said."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in OURS:
            return True
        error = error.__cause__ or error.__context__
    return False
