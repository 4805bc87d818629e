"""The proxy that everybody writes first: a FastAPI route, httpx, StreamingResponse. Nothing else: no limit, no metric.

ENGINES=http://127.0.0.1:8100,... python -m uvicorn bench.cost.plain:app
"""

import os
from collections.abc import AsyncIterator
from itertools import cycle
from typing import Any

import httpx
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

engines = cycle(os.environ.get("ENGINES", "").split(","))
client = httpx.AsyncClient(
    limits=httpx.Limits(max_connections=None, max_keepalive_connections=None), timeout=None, trust_env=False
)
app = FastAPI()


@app.post("/v1/chat/completions")
async def chat(body: dict[str, Any]) -> Response:
    url = f"{next(engines)}/v1/chat/completions"
    if body.get("stream"):
        return StreamingResponse(events(url, body), media_type="text/event-stream")
    answer = await client.post(url, json=body)
    return Response(answer.content, answer.status_code, media_type="application/json")


async def events(url: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
    async with client.stream("POST", url, json=body) as answer:
        async for block in answer.aiter_raw():
            yield block
