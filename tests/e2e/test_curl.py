"""Plain curl: what a person sees who tries it at a terminal."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.processes import Engine, GatewayProcess, clean_environment

QUESTION = [{"role": "user", "content": "What is continuous batching?"}]


def curl(*args: str) -> subprocess.CompletedProcess[str]:
    command = ["curl", "-sS", "--max-time", "30", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment())


def posting(gateway: GatewayProcess, body: str, *args: str, path: str = "/v1/chat/completions") -> tuple[str, ...]:
    return f"{gateway.url}{path}", "-H", "Content-Type: application/json", "-d", body, *args


def test_a_stream_arrives_as_it_is_made(gateway: GatewayProcess) -> None:
    body = json.dumps({"prompt": "On and on", "max_tokens": 100, "ignore_eos": True, "stream": True})
    command = ["curl", "-sSN", *posting(gateway, body, path="/v1/completions")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment()) as process:
        assert process.stdout is not None
        arrivals = [(time.monotonic(), line) for line in process.stdout]
    lines = [line.strip() for _, line in arrivals if line.strip()]
    assert process.returncode == 0
    assert len(lines) > 80, "a hundred tokens, fewer events only where a character takes several"
    assert lines[-1] == b"data: [DONE]"
    assert all(line.startswith(b"data: ") for line in lines)
    began, ended = arrivals[0][0], arrivals[-1][0]
    assert ended - began > 0.1
    moments = sorted({round(at - began, 2) for at, _ in arrivals})
    assert len(moments) > 8, "it came in a lump"
    half = sum(at - began < (ended - began) / 2 for at, _ in arrivals)
    assert len(arrivals) / 4 < half < 3 * len(arrivals) / 4


def test_the_headers_are_there_for_those_who_look(gateway: GatewayProcess, engine: Engine, tmp_path: Path) -> None:
    body = json.dumps({"messages": QUESTION, "temperature": 0})
    done = curl(*posting(gateway, body, "-D", str(tmp_path / "head"), "-H", "X-Request-Id: from-curl"))
    assert "batch" in json.loads(done.stdout)["choices"][0]["message"]["content"]
    status, *lines = (tmp_path / "head").read_text().strip().splitlines()
    head = dict(line.lower().split(": ", 1) for line in lines)
    assert status.startswith("HTTP/1.1 200")
    assert head["content-type"] == "application/json"
    assert head["x-request-id"] == "from-curl"
    assert (head["x-gllm-replica"], head["x-gllm-attempts"]) == (engine.url.removeprefix("http://"), "1")
    assert head["server-timing"].startswith("first_byte;dur=")
    assert "server" not in head


def test_ctrl_c_in_the_middle_is_a_hang_up(gateway: GatewayProcess, engine: Engine) -> None:
    body = json.dumps({"prompt": "On and on", "max_tokens": 1_900, "ignore_eos": True, "stream": True})
    command = ["curl", "-sSN", *posting(gateway, body, path="/v1/completions")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"data: ")
        assert engine.at_work() == 1
        process.terminate()
    deadline = time.monotonic() + 1
    while engine.at_work():
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("body", "args", "status", "code"),
    [
        ("{", [], 400, "invalid_json"),
        ("{}", [], 400, "missing_required_parameter"),
        ('{"messages":[{"role":"user","content":"x"}],"model":"gpt-9"}', [], 404, "model_not_found"),
        ('{"messages":[{"role":"user","content":"x"}],"n":1000000}', [], 400, "invalid_value"),
        ('{"messages":[{"role":"user","content":"x"}],"api_base":"http://x"}', [], 400, "unsupported_parameter"),
        ("{}", ["-H", "Content-Type: application/x-www-form-urlencoded"], 400, "ambiguous_header"),
        ("{}", ["-X", "PUT"], 405, "method_not_allowed"),
        ("{}", ["-H", "Content-Encoding: gzip"], 415, "unsupported_media_type"),
    ],
)
def test_wrong_input_is_an_error_in_json(
    gateway: GatewayProcess, engine: Engine, body: str, args: list[str], status: int, code: str
) -> None:
    taken = engine.taken()
    done = curl(*posting(gateway, body, *args, "-w", "\n%{http_code} %header{x-request-id}"))
    answer, _, told = done.stdout.rpartition("\n")
    assert told.split()[0] == str(status)
    assert told.split()[1].startswith("req-")
    error = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert engine.taken() == taken


def test_a_body_without_its_content_type_is_explained(gateway: GatewayProcess) -> None:
    """What curl does with `-d` alone, and the first thing that people forget."""
    done = curl(f"{gateway.url}/v1/chat/completions", "-d", json.dumps({"messages": QUESTION}), "-w", "\n%{http_code}")
    answer, _, status = done.stdout.rpartition("\n")
    assert status == "415"
    assert "Content-Type: application/json" in json.loads(answer)["error"]["message"]
