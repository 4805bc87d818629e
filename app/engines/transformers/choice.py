"""One of the answers a request gets: tokens come in, what may be shown of them goes out."""

from dataclasses import dataclass, field

from app.engines.transformers.job import Finish, Job, News
from app.engines.transformers.sampling import Logprobs
from app.engines.transformers.text import Detokenizer, StopMatcher


@dataclass
class Delta:
    """What has become visible since the last one."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, Logprobs]] = field(default_factory=list)


class Choice:
    """Collects until it is asked: `take` as often as there is news, `show` whenever something can be sent."""

    def __init__(
        self, index: int, job: Job, detokenizer: Detokenizer, stops: StopMatcher, *, include_stop: bool = False
    ) -> None:
        self.index = index
        self.job = job
        self.finish: Finish | None = None
        self.stop_reason: str | int | None = None
        self.produced = 0
        self._detokenizer = detokenizer
        self._stops = stops
        self._include_stop = include_stop
        self._delta = Delta()

    def take(self, news: News) -> None:
        """After this, `finish` may be set; a stop string may set it before the batch knows."""
        if self.finish:
            return
        if news.token is None:
            self.finish = news.finish
            return
        self.produced += 1
        self._delta.tokens.append(news.token)
        if news.logprobs is not None:
            self._delta.logprobs.append((news.token, news.logprobs))
        ended_by_token = news.finish == "stop"
        if not ended_by_token or (self._include_stop and news.stop_token is not None):
            self._release(self._detokenizer.push(news.token))
        if news.finish and not self.finish:
            self._release(self._detokenizer.finish())
        if news.finish and not self.finish:
            self._delta.text += self._stops.finish()
            self.finish, self.stop_reason = news.finish, news.stop_token

    def show(self) -> Delta:
        """Everything since the last call."""
        delta, self._delta = self._delta, Delta()
        return delta

    @property
    def visible(self) -> bool:
        """Whether there is text to show."""
        return bool(self._delta.text)

    def _release(self, text: str) -> None:
        if self.produced <= self.job.sampling.min_tokens:
            self._delta.text += text
            return
        self._delta.text += self._stops.push(text)
        if self._stops.matched is not None:
            self.finish, self.stop_reason = "stop", self._stops.matched
