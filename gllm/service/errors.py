"""What can go wrong. All of it is a RuntimeError, as gserve's users expect."""

from collections.abc import Sequence

TAIL_SHOWN = 20


class StartFailed(RuntimeError):
    """A server did not come up; nothing that was started with it is left."""

    def __init__(self, message: str, tail: Sequence[str] = (), log: str | None = None) -> None:
        self.tail = tuple(tail)
        """What the engine itself said last."""
        self.log = log
        """The file with all that it said, which is kept."""
        super().__init__(message + _quoted(tail) + (f"\n  Everything it said: {log}" if log else ""))


class RequestFailed(RuntimeError):
    """A request of a batch was not answered, and with it the batch was given up."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        self.status = status
        """The answer's, if there was one."""
        self.code = code
        super().__init__(message)


class Unreachable(RequestFailed):
    """The connection could not be made, or broke off."""

    def __init__(self, base_url: str, said: str) -> None:
        self.base_url = base_url
        super().__init__(f"The server at {base_url} cannot be reached: {said}")


class ServerDied(RequestFailed):
    """The engine ended in the middle of a batch."""

    def __init__(self, message: str, tail: Sequence[str], log: str) -> None:
        self.tail = tuple(tail)
        self.log = log
        super().__init__(f"{message}{_quoted(tail)}\n  Everything it said: {log}")


def _quoted(tail: Sequence[str]) -> str:
    return "".join(f"\n  | {line}" for line in tail[-TAIL_SHOWN:])
