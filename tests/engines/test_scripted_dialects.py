"""What made-up answers look like to the gateway: complete, counted, and broken off where the end is missing."""

import json

import pytest

from app.engines.scripted import dialects
from app.errors import EngineBroken
from app.generation import Call, Route, Usage
from app.wire.answers import stream_reader, usage_of

WORDS = ("Grüße", ", ", "world")
USAGE = Usage(7, 3)
GENERATIONS = (Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES)


def call(route: Route) -> Call:
    return Call(id="r", route=route, model="demo", body=b"{}", expires_at=0, stream=True)


def events(route: Route, usage: Usage | None) -> list[bytes]:
    asked = call(route)
    told = None if usage is None else dialects.counts(asked, usage)
    said = [dialects.says(asked, word, None) for word in WORDS]
    return [*dialects.begins(asked, told), *said, *dialects.ends(asked, "".join(WORDS), told)]


@pytest.mark.parametrize("route", GENERATIONS)
def test_a_stream_has_its_words_its_usage_and_its_proper_end(route: Route) -> None:
    reader = stream_reader(call(route))
    shown = b"".join([reader.read(block) for block in events(route, USAGE)])
    reader.close()
    assert reader.usage == USAGE
    assert all(json.dumps(word, ensure_ascii=False).encode() in shown for word in WORDS)
    assert [dialects.is_complete(call(route), block) for block in events(route, USAGE)].index(True) == len(
        events(route, USAGE)
    ) - 1


@pytest.mark.parametrize("route", GENERATIONS)
@pytest.mark.parametrize("usage", [USAGE, None])
def test_without_its_last_event_a_stream_has_broken_off(route: Route, usage: Usage | None) -> None:
    reader = stream_reader(call(route))
    for block in events(route, usage)[:-1]:
        reader.read(block)
    with pytest.raises(EngineBroken):
        reader.close()


@pytest.mark.parametrize("route", GENERATIONS)
@pytest.mark.parametrize("usage", [USAGE, None])
def test_a_whole_answer_has_its_words_and_its_usage(route: Route, usage: Usage | None) -> None:
    asked = call(route)
    body = dialects.whole(asked, "".join(WORDS), None if usage is None else dialects.counts(asked, usage))
    assert usage_of(body) == usage
    assert "".join(WORDS) in json.dumps(json.loads(body), ensure_ascii=False)
