"""Scripted engines that go on with an answer as real ones do: with the words that come after those in the request."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from app.engines.scripted import Script, Scripted
from app.generation import Call, Route

PROMPT_TOKENS = 7


def text_so_far(call: Call) -> str:
    """What the request says was answered before. Its own prompts end in `?`."""
    body = json.loads(call.body)
    if call.route is Route.COMPLETIONS:
        _, _, said = body["prompt"].rpartition("?")
        return str(said)
    return str(body["messages"][-1]["content"]) if body.get("continue_final_message") else ""


def continuing(words: tuple[str, ...], **how: Any) -> Callable[[Call], Script]:
    """`how`: of the script of a call that begins; one that goes on is done well."""

    def script(call: Call) -> Script:
        said = text_so_far(call)
        begun = next(count for count in range(len(words) + 1) if "".join(words[:count]) == said)
        rest = Script(words=words[begun : begun + (call.max_tokens or len(words))])
        return replace(rest, prompt_tokens=PROMPT_TOKENS + begun, **({} if begun else how))

    return script


_ANOTHER = b'"created":99,"of":"twin","model":'


class Twin(Scripted):
    """An engine whose answers have heads of their own, as those of another process have."""

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().open(call) as blocks:
            yield (block.replace(b'"created":0,"model":', _ANOTHER) async for block in blocks)
