"""Whether a cluster is there: found out without Ray."""

import socket

import pytest

from app.cluster.launchers.ray.address import NoCluster, knock, resolved


async def test_where_something_listens_nothing_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        await knock(f"127.0.0.1:{there.getsockname()[1]}")


async def test_where_nothing_listens_the_reason_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as was_there:
        port = was_there.getsockname()[1]
    with pytest.raises(NoCluster, match=rf"^No Ray cluster answers at 127\.0\.0\.1:{port}: Connection refused\.$"):
        await knock(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "local", "127.0.0.1", ":6379", "127.0.0.1:66000"])
async def test_what_is_no_address_of_a_cluster_is_refused(address: str) -> None:
    with pytest.raises(NoCluster, match="give HOST:PORT of its head, or auto"):
        await knock(address)


def test_the_flag_wins_over_the_environment() -> None:
    assert resolved("10.0.0.1:6379", {"RAY_ADDRESS": "10.0.0.2:6379"}) == "10.0.0.1:6379"
    assert resolved("auto", {"RAY_ADDRESS": "10.0.0.2:6379"}) == "10.0.0.2:6379"
    assert resolved("auto", {"RAY_ADDRESS": ""}) == "auto"
