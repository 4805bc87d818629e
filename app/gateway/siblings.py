"""What each of several processes keeps in its own memory, asked of all of them (docs/adr/0024).

They share a port, so an operator meets any one of them; that one asks the others, at their listeners for machines. What
is told there is for operators: who asks shows a key that only the family has, and has found out who wants to know.
"""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import httpx

ANSWER_S = 2.0
"""For what is told out of memory. One that takes longer is stuck, and is said not to have answered."""

_QUESTION = re.compile(rb"GET (?P<path>/siblings/[a-z]+)(?:\?(?P<query>[^ #]*))? HTTP/1\.1\r\n")
_KEY = re.compile(rb"\r\nauthorization: Bearer ([^\r\n]*)", re.IGNORECASE)

Query = Mapping[str, str]
Page = Callable[[Query], Awaitable[bytes]]


@dataclass(frozen=True)
class Family:
    """As one process knows it."""

    urls: tuple[str, ...]
    """Where the others are asked."""
    key: str = field(repr=False)


@dataclass(frozen=True)
class Heard:
    pages: tuple[bytes, ...]
    silent: tuple[str, ...]
    """Where nobody answered."""


ALONE = Heard((), ())


class Siblings:
    """Without a family there is nobody to ask."""

    def __init__(self, family: Family | None) -> None:
        self._family = family
        self._pages: dict[str, Page] = {}
        self._http: httpx.AsyncClient | None = None
        if family is not None:
            headers = {"authorization": f"Bearer {family.key}"}
            self._http = httpx.AsyncClient(headers=headers, timeout=ANSWER_S, trust_env=False, verify=False)

    def tell(self, name: str, page: Page) -> None:
        """From now on siblings may ask for it."""
        self._pages[f"/siblings/{name}"] = page

    def asked(self, head: bytes) -> Callable[[], Awaitable[bytes]] | None:
        """What a sibling wants to know, from the head of its request; nothing where it is somebody else's."""
        question, key = _QUESTION.match(head), _KEY.search(head)
        if self._family is None or question is None or key is None:
            return None
        page = self._pages.get(question["path"].decode())
        if page is None or not hmac.compare_digest(key[1], self._family.key.encode()):
            return None
        query = dict(parse_qsl((question["query"] or b"").decode("latin-1")))
        return lambda: page(query)

    async def ask(self, name: str, query: Query, within_s: float = ANSWER_S) -> Heard:
        if self._family is None or self._http is None:
            return ALONE
        urls = self._family.urls
        answers = await asyncio.gather(*(_told(self._http, f"{url}/siblings/{name}", query, within_s) for url in urls))
        return Heard(
            tuple(answer for answer in answers if answer is not None),
            tuple(url for url, answer in zip(urls, answers, strict=True) if answer is None),
        )

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()


async def _told(http: httpx.AsyncClient, url: str, query: Query, within_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(within_s):
            answer = await http.get(url, params=query, timeout=within_s)
    except (httpx.HTTPError, TimeoutError):
        return None
    return answer.content if answer.status_code == httpx.codes.OK else None
