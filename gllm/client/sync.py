"""`GLLM`: the client for code that waits."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import httpx

from gllm.client import answers, bodies, http
from gllm.client.answers import (
    ChatChunk,
    ChatGenerationResponse,
    CompletionChunk,
    CompletionResponse,
    JsonObject,
    Read,
    ReturnMode,
)
from gllm.client.bodies import ChatOptions, CompletionOptions, Messages, Prompt, Stop
from gllm.client.call import Call, CallOptions
from gllm.client.errors import LoadRefused, RemoteError, of_answer, translated
from gllm.client.retries import Retries, RetryBudget
from gllm.client.sync_stream import Reading, Stream

T = TypeVar("T")


class GLLM:
    """Talks to a gateway. One of them is enough for all threads of a program: its calls share a retry budget."""

    def __init__(
        self,
        server_address: str,
        api_key: str | None = None,
        *,
        retries: Retries | None = None,
        http_client: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`api_key` is taken from GLLM_API_KEY where it is not given. `http_client` brings its own TLS and proxies,
        and is closed by whoever made it."""
        self.server_address = bodies.base_url(server_address)
        self.last_loaded_model: str | None = None
        self._headers = http.headers(api_key or os.environ.get("GLLM_API_KEY"))
        self._retries = retries or Retries()
        self._budget = RetryBudget(self._retries)
        self._owns_http = http_client is None
        self._http = http_client or httpx.Client(limits=http.LIMITS, trust_env=http.may_be_proxied(self.server_address))
        self._sleep = sleep

    # --- completions ----------------------------------------------------------------------------------------------

    @overload
    def get_completions(
        self, model: str, prompt: Prompt, *, return_mode: Literal["primitives"], **options: Unpack[CompletionOptions]
    ) -> list[str]: ...
    @overload
    def get_completions(
        self, model: str, prompt: Prompt, *, return_mode: Literal["raw"], **options: Unpack[CompletionOptions]
    ) -> JsonObject: ...
    @overload
    def get_completions(
        self,
        model: str,
        prompt: Prompt,
        *,
        return_mode: Literal["openai"] = "openai",
        **options: Unpack[CompletionOptions],
    ) -> CompletionResponse: ...
    def get_completions(
        self,
        model: str,
        prompt: Prompt,
        *,
        best_of: int | None = None,
        echo: bool = False,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[str, float] | None = None,
        logprobs: int | None = None,
        max_tokens: int = 16,
        min_p: float | None = None,
        n: int = 1,
        presence_penalty: float = 0.0,
        seed: int | None = None,
        stop: Stop | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        return_mode: ReturnMode = "openai",
        **about: Unpack[CallOptions],
    ) -> CompletionResponse | list[str] | JsonObject:
        """`primitives`: the texts; `openai`: an object as of OpenAI's library; `raw`: the JSON as a dict."""
        read = answers.completion(return_mode)
        body = bodies.completion_body(
            model,
            prompt,
            best_of=best_of,
            echo=echo,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            logprobs=logprobs,
            max_tokens=max_tokens,
            min_p=min_p,
            n=n,
            presence_penalty=presence_penalty,
            seed=seed,
            stop=stop,
            temperature=temperature,
            top_p=top_p,
        )
        return self._whole(self._call(bodies.COMPLETIONS, body, **about), read)

    @overload
    def stream_completions(
        self, model: str, prompt: Prompt, *, return_mode: Literal["openai"], **options: Unpack[CompletionOptions]
    ) -> Stream[CompletionChunk]: ...
    @overload
    def stream_completions(
        self, model: str, prompt: Prompt, *, return_mode: Literal["raw"], **options: Unpack[CompletionOptions]
    ) -> Stream[JsonObject]: ...
    @overload
    def stream_completions(
        self,
        model: str,
        prompt: Prompt,
        *,
        return_mode: Literal["primitives"] = "primitives",
        **options: Unpack[CompletionOptions],
    ) -> Stream[str]: ...
    def stream_completions(
        self,
        model: str,
        prompt: Prompt,
        *,
        return_mode: ReturnMode = "primitives",
        **options: Unpack[CompletionOptions],
    ) -> Stream[Any]:
        """As `get_completions`, while it is made: text, or chunks as objects (`openai`) or dicts (`raw`)."""
        read = answers.completion_chunk(return_mode)
        fields, about = bodies.split_options(options)
        body = bodies.streamed(bodies.completion_body(model, prompt, **fields), return_mode)
        return self._stream(self._call(bodies.COMPLETIONS, body, **about), read)

    # --- chat -----------------------------------------------------------------------------------------------------

    @overload
    def get_chat_completion(
        self,
        model: str,
        messages: Messages,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        return_mode: Literal["primitives"],
        **options: Unpack[ChatOptions],
    ) -> list[JsonObject]: ...
    @overload
    def get_chat_completion(
        self,
        model: str,
        messages: Messages,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        return_mode: Literal["raw"],
        **options: Unpack[ChatOptions],
    ) -> JsonObject: ...
    @overload
    def get_chat_completion(
        self,
        model: str,
        messages: Messages,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        return_mode: Literal["openai"] = "openai",
        **options: Unpack[ChatOptions],
    ) -> ChatGenerationResponse: ...
    def get_chat_completion(
        self,
        model: str,
        messages: Messages,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        min_p: float | None = None,
        n: int = 1,
        stop: Stop | None = None,
        return_mode: ReturnMode = "openai",
        **about: Unpack[CallOptions],
    ) -> ChatGenerationResponse | list[JsonObject] | JsonObject:
        """`primitives`: messages as dicts; `openai`: an object as of OpenAI's library; `raw`: the JSON as a dict."""
        read = answers.chat(return_mode)
        body = bodies.chat_body(model, messages, max_tokens, temperature, min_p=min_p, n=n, stop=stop)
        return self._whole(self._call(bodies.CHAT, body, **about), read)

    @overload
    def stream_chat_completion(
        self,
        model: str,
        messages: Messages,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        return_mode: Literal["openai"],
        **options: Unpack[ChatOptions],
    ) -> Stream[ChatChunk]: ...
    @overload
    def stream_chat_completion(
        self,
        model: str,
        messages: Messages,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        return_mode: Literal["raw"],
        **options: Unpack[ChatOptions],
    ) -> Stream[JsonObject]: ...
    @overload
    def stream_chat_completion(
        self,
        model: str,
        messages: Messages,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        return_mode: Literal["primitives"] = "primitives",
        **options: Unpack[ChatOptions],
    ) -> Stream[str]: ...
    def stream_chat_completion(
        self,
        model: str,
        messages: Messages,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        return_mode: ReturnMode = "primitives",
        **options: Unpack[ChatOptions],
    ) -> Stream[Any]:
        """As `get_chat_completion`, while it is made: text, or chunks as objects (`openai`) or dicts (`raw`)."""
        read = answers.chat_chunk(return_mode)
        fields, about = bodies.split_options(options)
        body = bodies.streamed(bodies.chat_body(model, messages, max_tokens, temperature, **fields), return_mode)
        return self._stream(self._call(bodies.CHAT, body, **about), read)

    # --- the cluster ----------------------------------------------------------------------------------------------

    def load_model(self, model_identifier: str, force_reload: bool = False, timeout: float = http.LOAD_S) -> str:
        """A hub name, or a path that the workers can read. Why it was not loaded says a `LoadRefused`."""
        order = {"model_path": model_identifier, "force_reload": force_reload, "wait": True}
        said = self._command(bodies.LOAD_MODEL, order, timeout, LoadRefused)
        self.last_loaded_model = model_identifier
        return said

    def release_gpus(self, timeout: float = http.RELEASE_S) -> None:
        """On all workers."""
        self._command(bodies.RELEASE_GPUS, {}, timeout)

    def add_worker(self, address: str, timeout: float = http.COMMAND_S) -> str:
        """A worker that runs already, by its URL."""
        return self._command(bodies.ADD_WORKER, {"address": address}, timeout)

    def is_healthy(self, timeout: float = 5) -> bool:
        return self._health(timeout) == 200

    def wait_for_health(self, timeout: float = 300, check_interval: float = 5) -> Literal[True]:
        """Until the server can answer calls. `TimeoutError` if it cannot in time."""
        self._wait(lambda status: status == 200, timeout, check_interval, "Server did not become healthy in time")
        return True

    def wait_for_live(self, timeout: float = 300, check_interval: float = 5) -> None:
        """Until the server answers, whatever it says. `TimeoutError` if it does not in time."""
        self._wait(lambda status: status is not None, timeout, check_interval, "Server did not come live in time")

    # --- its own life ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- how it is asked ------------------------------------------------------------------------------------------

    def _call(self, path: str, body: Mapping[str, Any], **about: Unpack[CallOptions]) -> Call:
        return Call(path, body, self._retries, self._budget, **about)

    def _whole(self, call: Call, read: Read[T]) -> T:
        try:
            answer: T = call.retrying(self._sleep)(self._ask, call, read)
            return answer
        except RemoteError:
            raise
        except BaseException:
            self._give_up(call)
            raise

    def _ask(self, call: Call, read: Read[T]) -> T:
        with translated():
            answer = self._send(call, 0)
            try:
                body = b"".join(self._in_time(call, answer))
            finally:
                answer.close()
        return http.read_answer(answer, body, read)

    def _in_time(self, call: Call, answer: httpx.Response) -> Iterator[bytes]:
        for received in answer.iter_bytes():
            call.check_time()
            yield received

    def _stream(self, call: Call, read: Read[T]) -> Stream[T]:
        return Stream(Reading(call, self._send, self._give_up, self._sleep), read)

    def _send(self, call: Call, seen: int) -> httpx.Response:
        request = call.request(self._http, self.server_address, seen)
        request.headers.update(self._headers)
        return self._http.send(request, stream=True)

    def _give_up(self, call: Call) -> None:
        """Nobody comes back for it. If this is not heard, the gateway's grace time ends the work a little later."""
        if self._http.is_closed:
            return
        url = self.server_address + bodies.KEYS + call.key
        with suppress(httpx.HTTPError):
            self._http.delete(url, headers=self._headers, timeout=http.GIVE_UP_S)

    def _command(
        self, path: str, order: Mapping[str, Any], timeout: float, kind: type[RemoteError] | None = None
    ) -> str:
        """Sent once: what it begins may go on when its answer is lost."""
        limit_s = http.command_limit(timeout)
        with translated():
            url = self.server_address + path
            answer = self._http.post(url, json=order, headers=self._headers, timeout=limit_s)
        if answer.status_code not in (200, 202):
            raise of_answer(answer.status_code, answer.headers, answer.content, kind)
        return answer.text

    def _health(self, timeout: float) -> int | None:
        """The status; `None` where nothing answers."""
        try:
            url = self.server_address + bodies.HEALTH
            return self._http.get(url, headers=self._headers, timeout=timeout).status_code
        except httpx.HTTPError:
            return None

    def _wait(
        self, enough: Callable[[int | None], bool], timeout: float, check_interval: float, otherwise: str
    ) -> None:
        clock = self._retries.clock
        until = clock() + timeout
        while not enough(self._health(http.check_limit(until - clock(), check_interval))):
            left = until - clock()
            if not left > 0:  # nor is there anything left of what is no number
                raise TimeoutError(otherwise)
            self._sleep(min(check_interval, left))
