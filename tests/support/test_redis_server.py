from pathlib import Path

import psutil
import redis

from tests.support.redis_server import redis_server


def test_redis_answers_and_keeps_nothing(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.set("key", "value", px=60_000)
        assert client.get("key") == b"value"
        assert client.config_get("save") == {"save": ""}


def test_redis_is_gone_afterwards(tmp_path: Path) -> None:
    before = psutil.Process().children()
    with redis_server(tmp_path):
        (server,) = set(psutil.Process().children()) - set(before)
        assert server.is_running()
    assert not server.is_running()
