"""The one way to Redis: scripts and commands that are answered in time, or fail at once.

redis-py is imported when a store is made, so that gateways without REDIS_URL need none. Its connections are used
without its client, which sets a time limit on each step instead of on all of them, and costs as much CPU again.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from app.clock import Clock
from app.reliability.stores.bundle import Bundle, Told, nobody
from app.reliability.stores.patience import Patience
from app.reliability.stores.redis_pool import Command, ExchangeFailed, Part, Pool, UnusableStore, connector

__all__ = ["PREFIX", "Part", "Script", "SharedStore", "StoreRefused", "StoreUnavailable", "UnusableStore"]

log = logging.getLogger("gllm")

PREFIX = "gllm:"
"""Of every key, so that the database may be shared."""

CONNECTIONS = 32
"""For calls that are answered at once."""
PATIENT_CONNECTIONS = 64
"""For calls with a time limit of their own: they may block in Redis, and must not keep the others waiting."""

WHILE_UP_S = 5.0
WHILE_DOWN_S = 1.0
AFTER_DOUBT_S = 0.1
"""Between two looks of the watch: while all is well, while it is not, and when a call has just found that it is not."""

MOST_REFUSALS_TOLD = 100

_PROBE: Command = ("EVAL", "return redis.call('SET', KEYS[1], 1, 'PX', 60000)", 1, f"{PREFIX}probe")
"""A write, because a Redis that is full, or only reads, is of no use to us; by a script, as is all that we ask in
earnest: a user who may run none is of no use either."""

_REFUSALS = frozenset(
    """
    READONLY OOM MISCONF LOADING BUSY MASTERDOWN CLUSTERDOWN NOREPLICAS TRYAGAIN NOAUTH NOPERM WRONGPASS UNBLOCKED
    MOVED ASK
    ReadOnlyError OutOfMemoryError NoPermissionError MasterDownError ClusterDownError TryAgainError
    MovedError AskError
    """.split()
)
"""What Redis says when it would refuse anybody: its own words, and the classes by which redis-py replaces some."""


class StoreUnavailable(Exception):
    """Not answered, or not in time, or refused. Whether it was done all the same is not known."""


class StoreRefused(StoreUnavailable):
    """It answers, but not to this: a defect of ours, or a key that somebody else has used. Others are served."""


class Script:
    """A Lua text. Redis is sent it once, and its digest afterwards."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class SharedStore:
    def __init__(self, url: str, timeout_s: float, clock: Clock, on_change: Callable[[bool, str], None]) -> None:
        """`on_change` hears whether the store is available and why not: once that is known, and when it changes.

        Raises `UnusableStore`. Every call may raise `StoreUnavailable`.
        """
        self.available = True
        """What the last call or look found; at first, hoped for."""
        self._timeout_s = timeout_s
        self._clock = clock
        self._on_change = on_change
        self._told: bool | None = None
        self._refusals: set[str] = set()
        self._doubted = asyncio.Event()
        connect = connector(url)
        self._prompt = Pool(CONNECTIONS, connect, clock)
        self._bundle = Bundle(self._prompt, timeout_s, clock)
        self._patient = Pool(PATIENT_CONNECTIONS, connect, clock)
        self._secret = unquote(urlsplit(url).password or "")

    @property
    def longest_s(self) -> float:
        """Nothing takes longer that is to be answered at once, also where our own loop is late."""
        return 2 * self._timeout_s

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[Part] = (), abandoned: Told = nobody
    ) -> Any:
        """What the script returns. Keys of one script share a hash tag (`gllm:{tag}:…`): Redis Cluster asks for it.

        `abandoned`: of a caller that is cancelled meanwhile, hears when it has been run, or will not be any more."""
        given = (len(keys), *keys, *args)
        answer = (await self._ask((("EVALSHA", script.sha, *given),), abandoned=abandoned))[0]
        if type(answer).__name__ == "NoScriptError":  # a new Redis, or one that was restarted
            answer = (await self._ask((("EVAL", script.text, *given),), abandoned=abandoned))[0]
        return self._shown(answer)

    async def command(self, *parts: Part, timeout_s: float | None = None) -> Any:
        """Any other command. One that may block in Redis brings its own time limit, longer than it blocks."""
        return self._shown((await self._ask((parts,), timeout_s))[0])

    async def pipeline(self, commands: Sequence[Command], timeout_s: float | None = None) -> list[Any]:
        """All answers, in one round trip. It is no transaction."""
        return [self._shown(answer) for answer in await self._ask(commands, timeout_s)]

    async def keep_watch(self) -> None:
        """Finds out that the store is back, or that it went while nobody asked. Runs as long as the gateway does."""
        while True:
            await self._look()
            self._doubted.clear()
            try:
                async with asyncio.timeout(WHILE_UP_S if self.available else WHILE_DOWN_S):
                    await self._doubted.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(AFTER_DOUBT_S)

    async def aclose(self) -> None:
        await self._bundle.aclose()
        await self._prompt.aclose()
        await self._patient.aclose()

    async def _ask(
        self, commands: Sequence[Command], timeout_s: float | None = None, abandoned: Told = nobody
    ) -> list[Any]:
        if not self.available:
            raise StoreUnavailable("the shared store is known to be down")
        answers = await self._answers(commands, timeout_s, abandoned)
        if self._told is None:
            self._tell(True, "")
        return answers

    async def _answers(
        self, commands: Sequence[Command], timeout_s: float | None = None, abandoned: Told = nobody
    ) -> list[Any]:
        """Errors that concern the command alone stand among them."""
        try:
            if timeout_s is None:
                answers = await self._bundle.exchange(commands, abandoned)
            else:
                async with Patience(timeout_s, self._clock):
                    answers = await self._patient.exchange(commands)
        except TimeoutError as error:
            raise await self._lost(f"no answer within {timeout_s or self._timeout_s:g} s") from error
        except ExchangeFailed as failed:
            raise await self._lost(_told(failed.__cause__)) from failed.__cause__
        for answer in answers:
            if isinstance(answer, Exception) and _is_refusal(answer):
                raise await self._lost(_told(answer)) from answer
        return answers

    def _shown(self, answer: Any) -> Any:
        """Callers go on without the store as they do when it is down, so this is the one who must tell of a defect."""
        if not isinstance(answer, Exception):
            return answer
        told = _told(answer)
        if told not in self._refusals and len(self._refusals) < MOST_REFUSALS_TOLD:
            self._refusals.add(told)
            log.error("the shared store refused a command: %s", told)
        raise StoreRefused("the shared store refused this command") from answer

    async def _look(self) -> None:
        """Only a look finds that the store is back: calls that were under way and succeed late say little about it."""
        try:
            self._shown((await self._answers((_PROBE,)))[0])
        except StoreUnavailable:
            return  # told where it was raised
        self._tell(True, "")

    async def _lost(self, reason: str) -> StoreUnavailable:
        self._tell(False, reason.replace(self._secret, "…") if self._secret else reason)
        self._doubted.set()
        await self._prompt.drop_idle()
        await self._patient.drop_idle()
        return StoreUnavailable("the shared store does not answer")

    def _tell(self, available: bool, reason: str) -> None:
        self.available = available
        if available is not self._told:
            self._told = available
            self._on_change(available, reason)


def _is_refusal(error: Exception) -> bool:
    """Also where it happened inside a script: then its word stands in the middle of the text."""
    words = str(error).replace(":", " ").replace("-", " ").split()
    return type(error).__name__ in _REFUSALS or not _REFUSALS.isdisjoint(words)


def _told(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"
