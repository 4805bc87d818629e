"""Asks one running server, a batch at a time."""

import asyncio
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import httpx
import msgspec

from gllm.service.address import url_of
from gllm.service.batched import Batched, Outputs, Question
from gllm.service.command import LORA_NAME
from gllm.service.config import CLIENT_TIMEOUT_S, MAX_IN_FLIGHT, check_timeout
from gllm.service.errors import RequestFailed, Unreachable
from gllm.service.loop import run
from gllm.service.output import ResponseOutput, refusal

BUSY = (429, 503)
PAUSE_S = 1.0
"""Until a busy server is asked again that does not say when."""

LIMITS = httpx.Limits(keepalive_expiry=2.0)
"""Engines close a connection that was idle for 5 s; a request must not meet it on its way."""

JSON = {"content-type": "application/json"}


class VLLMClient(Batched):
    """A batch is sent as single requests, so many at once as a server works on; the answers come in the batch's order.

    A server that says it is full is asked again, within the timeout. Any other failure ends the batch, stops what the
    server still works on, and is raised.
    """

    def __init__(
        self,
        host: str,
        port: int,
        timeout: float | None = CLIENT_TIMEOUT_S,
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        """`timeout`: seconds for each request, from when it is sent; None waits as long as it takes."""
        check_timeout("timeout", timeout)
        self.base_url = url_of(host, port)
        self.timeout = timeout
        self._max_in_flight = max_in_flight
        self._closed = False
        self._model = self._model_served()

    def close(self) -> None:
        """Connections last as long as a batch; what is left is to refuse further ones."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _model_served(self) -> str:
        """The adapter, where there is one, else the model itself."""
        try:
            with httpx.Client(base_url=self.base_url, trust_env=False, verify=False, timeout=self.timeout) as http:
                http.get("/health").raise_for_status()
                answer = http.get("/v1/models").raise_for_status()
                names = [each["id"] for each in answer.json()["data"]]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise Unreachable(self.base_url, str(error) or type(error).__name__) from error
        return LORA_NAME if LORA_NAME in names else names[0]

    # --- a batch ---------------------------------------------------------------------------------------------------

    def _outputs(self, questions: Sequence[Question]) -> Outputs:
        return run(self.answered(questions)) if questions else []

    async def answered(self, questions: Sequence[Question]) -> Outputs:
        """For those who ask several servers at once."""
        if self._closed:
            raise RuntimeError("This client is closed.")
        answers: Outputs = [[] for _ in questions]
        left = iter(enumerate(questions))
        at_once = min(len(questions), max(1, self._max_in_flight // max(each.sequences for each in questions)))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(self._work_through(left, answers))
        return answers

    async def _work_through(self, left: Iterator[tuple[int, Question]], answers: Outputs) -> None:
        """On a connection of its own: one pool for all of them would be searched from end to end for each request."""
        async with httpx.AsyncClient(
            base_url=self.base_url, trust_env=False, verify=False, timeout=None, limits=LIMITS, headers=JSON
        ) as http:
            for place, question in left:
                answers[place] = await self._answer(question, http)

    async def _answer(self, question: Question, http: httpx.AsyncClient) -> list[ResponseOutput]:
        body = msgspec.json.encode({**question.fields, "model": self._model})
        try:
            async with asyncio.timeout(self.timeout):
                answer = await _posted(http, question.path, body)
        except TimeoutError:
            after = f"within {self.timeout:g} s (VLLMClient's timeout, ServeConfig's client_timeout)"
            raise RequestFailed(f"The server at {self.base_url} did not answer {after}.") from None
        except httpx.HTTPError as error:
            raise Unreachable(self.base_url, str(error) or type(error).__name__) from error
        if answer.status_code != 200:
            said, code = refusal(answer.content)
            raise RequestFailed(f"{question.path} returned HTTP {answer.status_code}: {said}", answer.status_code, code)
        try:
            return question.read(answer.content)
        except ValueError as error:
            raise RequestFailed(f"The server at {self.base_url} sent what is no answer: {error}") from error


async def _posted(http: httpx.AsyncClient, path: str, body: bytes) -> httpx.Response:
    while True:
        answer = await http.post(path, content=body)
        if answer.status_code not in BUSY:
            return answer
        await asyncio.sleep(_pause_s(answer))


def _pause_s(answer: httpx.Response) -> float:
    told = answer.headers.get("retry-after", "")
    return float(told) if told.isdecimal() else PAUSE_S
