"""What made-up answers look like to the gateway: complete, counted, and broken off where the end is missing."""

import json

import pytest

from app.engines import dialects
from app.errors import EngineBroken
from app.generation import Call, Route, Usage
from app.wire.answers import stream_reader, usage_of

WORDS = ("Grüße", ", ", "world")
USAGE = Usage(7, 3)
GENERATIONS = (Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES)


def call(route: Route) -> Call:
    return Call(id="r", route=route, model="demo", body=b"{}", expires_at=0, stream=True)


@pytest.mark.parametrize("route", GENERATIONS)
def test_a_stream_has_its_words_its_usage_and_its_proper_end(route: Route) -> None:
    reader = stream_reader(call(route))
    shown = b"".join([reader.read(block) for block in dialects.events(call(route), WORDS, USAGE)])
    reader.close()
    assert reader.usage == USAGE
    assert all(json.dumps(word, ensure_ascii=False).encode() in shown for word in WORDS)


@pytest.mark.parametrize("route", GENERATIONS)
@pytest.mark.parametrize("usage", [USAGE, None])
def test_without_its_last_event_a_stream_has_broken_off(route: Route, usage: Usage | None) -> None:
    reader = stream_reader(call(route))
    for block in list(dialects.events(call(route), WORDS, usage))[:-1]:
        reader.read(block)
    with pytest.raises(EngineBroken):
        reader.close()


@pytest.mark.parametrize("route", GENERATIONS)
@pytest.mark.parametrize("usage", [USAGE, None])
def test_a_whole_answer_has_its_words_and_its_usage(route: Route, usage: Usage | None) -> None:
    body = dialects.whole(call(route), WORDS, usage)
    assert usage_of(body) == usage
    assert "".join(WORDS) in json.dumps(json.loads(body), ensure_ascii=False)
