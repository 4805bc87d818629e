"""`gllm start-cluster --launcher ray`: the command, a gateway, and a worker with its engine on a node of Ray's."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.ray.nodes import LOOPBACK_ONLY, Nodes, node
from tests.support.ports import free_port
from tests.support.processes import ROOT, Server, clean_environment, comes_true

pytestmark = pytest.mark.timeout(300)

A = "127.0.0.7"


def start(cluster: Nodes, folder: Path, *args: str) -> Server:
    port = free_port()
    argv = [sys.executable, "-P", "-m", "gllm.cli", "start-cluster", "--launcher", "ray", "--port", str(port), *args]
    return Server("cluster", argv, port, folder / "said.log", clean_environment(**LOOPBACK_ONLY), folder)


def test_workers_on_nodes_serve_and_end_with_the_command(cluster: Nodes, tmp_path: Path) -> None:
    words = ("--workers", "1", "--ray-address", cluster.address, "--engine", "transformers")
    with node(cluster, A, "1"):
        running = start(cluster, tmp_path, *words, "--load-model", str(ROOT / "models" / "demo"))
        try:
            running.await_ready(limit_s=240)
            assert running.http.post("/v1/completions", json={"prompt": "Docker", "max_tokens": 2}).status_code == 200
            os.kill(running.pid, signal.SIGINT)
            assert running.wait(12) == 0
        finally:
            running.end()
    assert f"ray-0: placed on {A}" in running.log.read_text()


def test_without_a_cluster_it_ends_with_a_sentence(cluster: Nodes, tmp_path: Path) -> None:
    running = start(cluster, tmp_path, "--workers", "all", "--ray-address", "127.0.0.1:9")
    try:
        assert comes_true(lambda: not running.running, 60)
        assert running.wait() == 1
    finally:
        running.end()
    assert "gllm: No Ray cluster answers at 127.0.0.1:9: " in running.log.read_text()
