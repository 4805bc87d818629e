import socket
from collections.abc import Iterator

import pytest

from app.cluster.launchers.ports import NoPort, Ports

HOST, FIRST = "127.0.0.1", 23_600


@pytest.fixture
def ports() -> Iterator[Ports]:
    ports = Ports(HOST, FIRST)
    yield ports
    ports.close()


def test_each_port_is_given_once(ports: Ports) -> None:
    assert [next(ports), next(ports)] == [FIRST, FIRST + 1]


def test_a_port_that_somebody_listens_on_is_skipped(ports: Ports) -> None:
    with socket.create_server((HOST, FIRST)):
        assert next(ports) == FIRST + 1
    assert ports.skipped == [FIRST]


def test_a_port_is_claimed_until_it_is_given_back(ports: Ports) -> None:
    others = Ports(HOST, FIRST)
    assert (next(ports), next(others)) == (FIRST, FIRST + 1)
    others.close()
    ports.close()
    again = Ports(HOST, FIRST)
    assert next(again) == FIRST
    again.close()


def test_ports_end() -> None:
    last = Ports(HOST, 65_535)
    with socket.create_server((HOST, 65_535)), pytest.raises(NoPort):
        next(last)
