"""gserve's library over real vLLM: started from Python, asked in batches, with an adapter, and gone with the block."""

from pathlib import Path

import psutil
import pytest

from gllm import LLMConfig, ServeConfig, VLLMService
from tests.support.processes import ROOT
from tests.support.vllm import SHARED_GPU, START_S
from tests.vllm.adapters import RANK, write_adapter

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2 * START_S, func_only=True)]


def test_a_batch_is_answered_in_its_order_with_logprobs_and_an_adapter(tmp_path: Path) -> None:
    model = LLMConfig(
        str(ROOT / "models" / "demo"),
        enforce_eager=True,
        max_model_len=512,
        gpu_memory_utilization=float(SHARED_GPU.split()[1]),
        lora_path=str(write_adapter(tmp_path / "adapter")),
        llm_kwargs={"max_lora_rank": 2 * RANK},
    )
    before = set(psutil.Process().children(recursive=True))
    with VLLMService(model, ServeConfig(gpu_ids=[0], startup_timeout=START_S, client_timeout=60.0)) as service:
        assert service.is_running()
        prompts = [f"{what} is" for what in ("Docker", "A queue", "A deadline", "Docker")]
        answers = service.generate(prompts, {"temperature": 0, "max_tokens": 8, "logprobs": 2}, return_extra=True)
        assert len(answers) == len(prompts)
        assert answers[0][0].text == answers[3][0].text
        assert len({each[0].text for each in answers}) == 3
        assert len(answers[0][0].logprobs or []) == 8
        chats = [[{"role": "user", "content": "What is batching?"}]] * 2
        assert [len(each) for each in service.chat(chats, {"n": 2, "max_tokens": 4, "temperature": 0.7})] == [2, 2]
    assert not service.is_running()
    assert set(psutil.Process().children(recursive=True)) <= before
