"""The driver's library (NVML), asked so that it can neither end nor stop whoever asks."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

ANSWER_S = 5.0
"""An answer takes milliseconds; one that has not come by now may never come: so it is with a GPU off its bus."""


class Silent(Exception):
    """The driver does not tell. The text is a clause."""


class Driver:
    """Every error of NVML enters here, and becomes `Silent`."""

    def __init__(self, nvml: Any, answer_s: float = ANSWER_S) -> None:
        self._nvml = nvml
        self._answer_s = answer_s
        self._unanswered: threading.Thread | None = None

    def ask(self, question: Callable[[Any], T]) -> T:
        if self._unanswered and self._unanswered.is_alive():
            raise Silent("an earlier question is still unanswered")
        answer: Future[T] = Future()
        # A daemon: one that never returns must not keep us from ending.
        asking = threading.Thread(target=_answer, args=(answer, question, self._nvml), name="nvml", daemon=True)
        asking.start()
        try:
            return answer.result(self._answer_s)
        except TimeoutError:
            self._unanswered = asking
            raise Silent(f"no answer within {self._answer_s:g} s") from None
        except self._nvml.NVMLError as error:
            raise Silent(str(error)) from None


def _answer(answer: Future[T], question: Callable[[Any], T], nvml: Any) -> None:
    try:
        answer.set_result(question(nvml))
    except BaseException as error:
        answer.set_exception(error)
