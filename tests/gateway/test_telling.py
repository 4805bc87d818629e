"""What the way through tells the metrics and the log, whatever clients send."""

import io
import random

from app.telemetry.logs import LogWriter, RequestLog
from tests.gateway.conftest import Build, asking
from tests.telemetry.test_prometheus import ours


async def test_ten_thousand_junk_models_and_paths_add_no_series(build: Build) -> None:
    house = await build()
    metrics = house.gateway.metrics
    assert metrics is not None
    dice = random.Random(7)

    async def some(count: int) -> None:
        for _ in range(count):
            junk = f"{dice.getrandbits(64):x}"
            match dice.randrange(4):
                case 0:
                    await house.post(asking(model=junk))
                case 1:
                    await house.get(f"/{junk}")
                case 2:
                    await house.get(f"/v1/models/{junk}")
                case 3:
                    await house.post(b"", path="/v1/chat/completions", method=junk.upper())

    await house.post(asking())
    await some(50)
    before = set(ours(metrics))
    await some(9_950)
    assert set(ours(metrics)) == before


async def test_a_prompt_a_key_and_an_answer_are_never_logged(build: Build) -> None:
    stream = io.StringIO()
    writer = LogWriter(stream)
    house = await build()
    for as_json in (True, False):
        log = RequestLog(writer, as_json=as_json)
        headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer canary-key")]
        for body in (
            asking(messages=[{"role": "user", "content": "canary-prompt"}]),
            asking(messages=[{"role": "user", "content": "canary-prompt"}], stream=True, user="canary-user"),
            asking(messages=[{"role": "canary-role", "content": "canary-prompt"}]),
            asking(messages="canary-prompt"),
            {"canary-field": "canary-prompt"},
        ):
            await house.post(body, headers=headers)
        for each in house.recorder.records:
            log.ended(each)
        for event in house.recorder.events:
            log.note(event)
    writer.close()
    assert stream.getvalue().count("chat/completions") == 15
    assert "canary" not in stream.getvalue()
    assert "Hello" not in stream.getvalue()
