"""Two real servers of the demo model, and what is asked of both at once."""

import sys
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gllm import LLMConfig, ResponseOutput, ServeConfig, VLLMClient, VLLMServer, VLLMService
from gllm.service.batched import Question
from gllm.service.errors import RequestFailed, ServerDied, StartFailed
from gllm.service.output import text_outputs
from gllm.service.service import split
from tests.cluster.launchers import scripts
from tests.service.conftest import DEMO, StandIn, keepers, logs
from tests.service.vllm_stub import SamplingParams

GREEDY = {"temperature": 0, "max_tokens": 12}
SUBJECTS = ["Docker", "a queue", "batching", "a deadline", "a token"]


def conversations(subjects: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"What is {subject}?"}] for subject in subjects]


def alone(service: VLLMService) -> VLLMClient:
    """One of the two servers, asked one thing at a time: what each answer is without company."""
    return VLLMClient(service.servers[0].host, service.servers[0].port, timeout=60, max_in_flight=1)


def taken(service: VLLMService) -> list[int]:
    """Requests that each server has finished, ever."""
    pages = [httpx.get(f"{client.base_url}/metrics", trust_env=False).text for client in service.clients]
    lines = [[line for line in page.splitlines() if line.startswith("vllm:request_success_total")] for page in pages]
    return [sum(int(float(line.rpartition(" ")[2])) for line in each) for each in lines]


def test_chats_go_over_both_servers_and_come_back_in_order(service: VLLMService) -> None:
    before = taken(service)
    together = service.chat(conversations(SUBJECTS), GREEDY)
    assert [now - then for now, then in zip(taken(service), before, strict=True)] == [3, 2]
    assert together == alone(service).chat(conversations(SUBJECTS), GREEDY)
    assert "Docker" in together[0][0]
    assert len({answers[0] for answers in together}) == len(SUBJECTS)


def test_texts_do_too(service: VLLMService) -> None:
    prompts = [f"{subject.capitalize()} is" for subject in SUBJECTS]
    assert service.generate(prompts, GREEDY) == alone(service).generate(prompts, GREEDY)


def test_vllms_own_parameters_mean_the_same(service: VLLMService) -> None:
    params = SamplingParams(temperature=0, max_tokens=12)
    assert service.generate(["Docker is"], params) == service.generate(["Docker is"], GREEDY)


@pytest.mark.parametrize("endpoint", ["chat", "generate"])
def test_extra_brings_logprobs_of_each_token(service: VLLMService, endpoint: str) -> None:
    params = {**GREEDY, "max_tokens": 3, "logprobs": 2}
    if endpoint == "chat":
        ((output,),) = service.chat(conversations(["Docker"]), params, return_extra=True)
    else:
        ((output,),) = service.generate(["Docker is"], params, return_extra=True)
    assert isinstance(output, ResponseOutput)
    assert output.logprobs is not None
    assert [len(position) for position in output.logprobs] == [2, 2, 2]
    for position in output.logprobs:
        chosen, other = position.values()
        assert other.logprob <= chosen.logprob <= 0
    if endpoint == "chat":
        assert "".join(next(iter(each.values())).decoded_token or "" for each in output.logprobs) == output.text


def test_logprobs_are_there_only_when_asked_for(service: VLLMService) -> None:
    ((output,),) = service.generate(["Docker is"], GREEDY, return_extra=True)
    assert output.logprobs is None


def test_n_answers_to_each_and_a_seed_that_repeats_them(service: VLLMService) -> None:
    params = {"n": 3, "seed": 5, "temperature": 2.0, "max_tokens": 12}
    first = service.generate(["Zebras", "Once upon a time"], params)
    assert [len(answers) for answers in first] == [3, 3]
    assert len(set(first[0])) > 1
    assert service.generate(["Zebras", "Once upon a time"], params) == first


def test_where_a_text_stops_and_how_long_it_may_be(service: VLLMService) -> None:
    ((whole,),) = service.generate(["Docker is"], {**GREEDY, "max_tokens": 20})
    word = whole.split()[3]
    ((stopped,),) = service.generate(["Docker is"], {**GREEDY, "max_tokens": 20, "stop": [word]})
    assert stopped == whole[: whole.index(word)]


def test_a_batch_larger_than_the_engines_hold_is_answered(service: VLLMService) -> None:
    texts = service.generate(["Docker"] * 300, {"max_tokens": 1, "temperature": 0})
    assert len(texts) == 300
    assert len({text for (text,) in texts}) == 1


def test_more_at_once_than_an_engine_takes_is_backpressure_and_no_error(service: VLLMService) -> None:
    with VLLMClient("127.0.0.1", service.servers[0].port, timeout=60, max_in_flight=200) as eager:
        assert len(eager.generate(["Docker"] * 200, {"max_tokens": 2})) == 200


def test_an_empty_batch_has_no_answers(service: VLLMService) -> None:
    assert service.chat([]) == service.generate([]) == []


def test_a_batch_with_one_bad_request_fails_in_the_engines_words(service: VLLMService) -> None:
    with pytest.raises(RequestFailed, match=r"HTTP 400: This model's context holds 2048 tokens") as caught:
        service.generate(["Docker", "x " * 3_000])
    assert caught.value.code == "context_length_exceeded"
    assert service.generate(["Docker"])


def test_a_second_start_is_refused(service: VLLMService) -> None:
    with pytest.raises(RuntimeError, match="Service already started"):
        service.start()
    assert service.is_running()


def test_before_its_start_nothing_is_answered() -> None:
    idle = VLLMService(DEMO, ServeConfig([0]))
    assert not idle.is_running()
    for ask in (idle.chat, idle.generate):
        with pytest.raises(RuntimeError, match=r"Service not started\. Call \.start\(\) first\."):
            ask([])
    idle.shutdown()


@pytest.mark.parametrize("gpus", [[], [0, 0]])
def test_no_gpu_and_the_same_one_twice_are_refused(gpus: list[int]) -> None:
    with pytest.raises(ValueError, match="name at least one, and none twice"):
        VLLMService(DEMO, ServeConfig(gpus))


def test_a_model_that_does_not_exist_starts_nothing_and_is_told_in_the_engines_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = keepers()
    missing = VLLMService(LLMConfig("/no/such/model"), ServeConfig([0, 1], port=24_200, engine="transformers"))
    with pytest.raises(StartFailed, match="/no/such/model is not a folder with a model in it") as caught:
        missing.start()
    assert "/no/such/model is not a folder with a model in it." in caught.value.tail
    assert caught.value.log in [str(each) for each in logs(tmp_path)]
    assert keepers() == before
    missing.shutdown()


DIES_WHEN_ASKED = (
    scripts.SERVES
    + """
import os
class Mortal(Healthy):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b'{"data": [{"id": "m"}]}'
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        if int(sys.argv[1]) % 2:
            print("out of memory", flush=True); os._exit(9)
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"choices": [{"index": 0, "text": "well"}]}'
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Mortal).serve_forever()
"""
)


def test_a_death_in_a_batch_is_told_and_the_next_batch_goes_to_the_others(stand_in: StandIn) -> None:
    stand_in(DIES_WHEN_ASKED)
    with VLLMService(LLMConfig("m"), ServeConfig([0, 1], port=24_500, engine="transformers")) as mortal:
        with pytest.raises(ServerDied, match=r"24501 ended by itself: exit code 9\.\n  \| out of memory"):
            mortal.generate(["a", "b"])
        assert mortal.is_running()
        assert mortal.generate(["a", "b", "c"]) == [["well"]] * 3
        keepers_of(mortal)[0].children()[0].kill()
        with pytest.raises(ServerDied, match="24500 ended by itself: killed by SIGKILL"):
            mortal.generate(["a"])
        assert not mortal.is_running()


def keepers_of(service: VLLMService) -> list[psutil.Process]:
    ports = [str(server.port) for server in service.servers]
    return [each for each in keepers() if each.cmdline()[-1] in ports]


def test_vllm_is_started_as_its_command_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Path(__file__).parents[1] / "cli" / "fake_vllm.py"
    command = tmp_path / "vllm"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setattr("app.engines.vllm.command.executable", lambda: str(command))
    with (
        VLLMServer(LLMConfig("some/model"), [0], port=24_600) as server,
        VLLMClient(server.host, server.port) as client,
    ):
        assert client.chat([[{"role": "user", "content": "Hi"}]]) == [["Hello from the engine."]]


def question(text: str) -> Question:
    return Question("/", {"prompt": text}, text_outputs)


@given(st.lists(st.text(max_size=2)), st.integers(1, 9))
def test_a_split_keeps_the_order_and_is_nearly_even(texts: list[str], parts: int) -> None:
    questions = [question(text) for text in texts]
    shares = split(questions, parts)
    assert len(shares) == parts
    assert [each for share in shares for each in share] == questions
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
