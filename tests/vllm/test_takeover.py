"""A replica that is killed in mid-stream, while the other one may go on with what it has begun."""

import os
import signal

import pytest

from tests.support.processes import GatewayProcess, comes_true
from tests.support.reading import QUESTIONS, Reading, kill_in_mid_stream, undisturbed
from tests.support.vllm import START_S, VllmFleet

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(START_S + 120, func_only=True)]


def test_every_stream_of_a_killed_replica_ends_as_if_nothing_had_happened(
    vllm: VllmFleet, gateway: GatewayProcess
) -> None:
    right = undisturbed(gateway)
    before = gateway.sum_of("gllm_streams_taken_over_total")
    readings = [Reading(gateway, question) for question in QUESTIONS]
    for each in readings:
        each.start()
    lost = kill_in_mid_stream(readings, vllm.server_of, lambda pid: os.kill(pid, signal.SIGKILL))
    assert lost
    for each in readings:
        assert each.is_one_answer(), each.lines
        assert each.told == right[each.question]
    assert gateway.sum_of("gllm_streams_taken_over_total") == before + len(lost)
    assert comes_true(vllm.all_ready, START_S, every_s=0.5)
