"""What outlives a request: limits, books and finished answers, in memory and files, or shared by gateways in Redis."""

from collections.abc import Callable, Coroutine
from typing import Any

from app.clock import Clock, unix_now, utc_today
from app.reliability.ledger import Ledger
from app.reliability.quota import LocalQuota
from app.reliability.stores.answer_file import AnswerFile
from app.reliability.stores.answer_keys import AnswerKeys
from app.reliability.stores.answers import AnswerStore
from app.reliability.stores.books import Books
from app.reliability.stores.embedded import EmbeddedAnswers
from app.reliability.stores.redis import SharedStore, UnusableStore
from app.reliability.stores.redis_quota import RedisQuota
from app.reliability.stores.shared import SharedAnswers
from app.settings import BadSetting, Settings
from app.telemetry.base import StoreChanged, Telemetry


class Storage:
    def __init__(self, settings: Settings, clock: Clock, telemetry: Telemetry) -> None:
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self.shared = self._shared()
        self.books = self._books()
        self.quota = LocalQuota(clock) if self.shared is None else RedisQuota(self.shared, clock)
        self.answers = self._answers()

    @property
    def loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What has to run for as long as the gateway does."""
        loops = [self.books.run, self.answers.run]
        if self.shared is not None:
            loops.append(self.shared.keep_watch)
        if isinstance(self.quota, RedisQuota):
            loops.append(self.quota.run)
        return loops

    async def aclose(self) -> None:
        await self.answers.aclose()
        await self.books.aclose()
        if self.shared is not None:
            await self.shared.aclose()

    def _shared(self) -> SharedStore | None:
        storage = self._settings.storage
        if storage.redis_url is None:
            return None
        url = storage.redis_url.get_secret_value()
        try:
            return SharedStore(url, storage.redis_timeout_s, self._clock, self._shared_changed)
        except UnusableStore as error:
            raise BadSetting(str(error)) from None

    def _shared_changed(self, available: bool, reason: str) -> None:
        self._telemetry.note(StoreChanged(available, reason))

    def _books(self) -> Books:
        storage = self._settings.storage
        return Books(Ledger(utc_today), storage.state_dir, storage.ledger_flush_s, self.shared, self._clock)

    def _answers(self) -> AnswerStore:
        """Finished answers: shared, or in a file that a restart finds again."""
        rules = self._settings.idempotency
        if self.shared is not None:
            return SharedAnswers(AnswerKeys(self.shared, self._clock, rules.kept_s, rules.lease_s))
        path = self._settings.storage.state_dir / "answers.sqlite"
        return EmbeddedAnswers(AnswerFile(path, rules.disk_bytes, rules.kept_s, unix_now))
