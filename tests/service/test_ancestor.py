"""gserve's README examples, as they stand there but for the package, the model and the engine."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.service import vllm_stub
from tests.service.conftest import DEMO

Run = Callable[[str], dict[str, Any]]

QUICK_START = """
from gserve import VLLMService, LLMConfig, ServeConfig
from vllm import SamplingParams

# 1. Configure the LLM and Serving parameters
llm_config = LLMConfig(
    model_name="meta-llama/Llama-3.2-8B-Instruct", # Or any other model
    # tokenizer="meta-llama/Llama-3.2-8B-Instruct", # Optional: if different from model_name
    # trust_remote_code=True, # If model requires it
    # dtype="bfloat16",
    # quantization="awq", # Example: if using a quantized model
    # lora_path="/path/to/your/lora_adapter", # Optional: if using LoRA
)

serve_config = ServeConfig(
    gpu_ids=[0],  # Use GPU 0. For multiple GPUs, e.g., [0, 1]
    # port=8000, # Optional: specify a starting port, otherwise auto-assigned
    startup_timeout=300.0, # Increase if your model takes longer to load
    verbose=True # Show server logs
)

# 2. Initialize and start the service
# This will spawn a vLLM server subprocess
service = VLLMService(llm_config=llm_config, serve_config=serve_config)

# Use as a context manager for automatic shutdown
with service:
    print(f"Service started. Servers running: {service.is_running()}")

    # 3. Prepare requests
    conversations = [
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"}
        ],
        [
            {"role": "user", "content": "Explain the theory of relativity in simple terms."}
        ]
    ]
    prompts = [
        "The quick brown fox jumps over the lazy ",
        "Once upon a time, in a land far, far away, "
    ]

    # Optional: Define sampling parameters
    sampling_params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=100)

    # 4. Send requests
    # Chat completions
    chat_responses = service.chat(conversations, sampling_params=sampling_params)
    for i, response_list in enumerate(chat_responses):
        print(f"Chat Response for conversation {i+1}:")
        for output in response_list:
            print(f"- {output}") # By default, returns list of strings

    # Text generation
    # To get full ResponseOutput (including logprobs if enabled in SamplingParams)
    generate_responses_extra = service.generate(prompts, sampling_params=sampling_params, return_extra=True)
    for i, response_list in enumerate(generate_responses_extra):
        print(f"Generation Response for prompt {i+1}:")
        for output_obj in response_list:
            print(f"- Text: {output_obj.text}")
            # print(f"- Logprobs: {output_obj.logprobs}") # If logprobs were requested

# Service is automatically shut down when exiting the 'with' block
print(f"Service shut down. Servers running: {service.is_running()}")

# Alternatively, without context manager:
# service.start()
# ... do work ...
# service.shutdown()
"""

SERVER_AND_CLIENT = """
from gserve import VLLMServer, VLLMClient, LLMConfig
from vllm import SamplingParams

llm_config = LLMConfig(model_name="meta-llama/Llama-3.2-8B-Instruct")

# Start a single server
server = VLLMServer(
    llm_config=llm_config,
    gpu_ids=[0],
    verbose=True
)

with server: # Manages server.start() and server.shutdown()
    print(f"Server started on {server.host}:{server.port}")

    # Create a client for the server
    with VLLMClient(host=server.host, port=server.port) as client:
        prompts = ["Hello, my name is"]
        sampling_params = SamplingParams(max_tokens=50)

        responses = client.generate(prompts, sampling_params)
        print(responses[0][0])

print("Server shut down.")
"""

SEVERAL_GPUS = """
from gserve import VLLMService, LLMConfig, ServeConfig

serve_config = ServeConfig(
    gpu_ids=[0, 1], # Will attempt to start two servers, one on GPU 0, one on GPU 1
    # port=8000, # Server on GPU 0 will use 8000, server on GPU 1 will use 8001
    verbose=True
)

# llm_config remains the same
llm_config = LLMConfig(model_name="meta-llama/Llama-3.2-8B-Instruct")

service = VLLMService(llm_config=llm_config, serve_config=serve_config)

with service:
    # Requests to service.chat() or service.generate() will be
    # automatically distributed among the available servers.
    prompts = [f"Prompt for server {i}" for i in range(10)]
    responses = service.generate(prompts)
    # ...
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setitem(sys.modules, "vllm", vllm_stub)

    def run_it(example: str) -> dict[str, Any]:
        ours = example.replace("from gserve import", "from gllm import")
        ours = ours.replace("meta-llama/Llama-3.2-8B-Instruct", DEMO.model_name)
        for call in ("ServeConfig(\n", "VLLMServer(\n"):
            ours = ours.replace(call, call + '    engine="transformers",\n')
        names: dict[str, Any] = {}
        exec(ours, names)
        return names

    return run_it


def test_the_quick_start(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    names = run(QUICK_START)
    shown = capfd.readouterr()
    assert "Service started. Servers running: True" in shown.out
    assert "Service shut down. Servers running: False" in shown.out
    assert "engine: ready" in shown.err
    assert all(output for answers in names["chat_responses"] for output in answers)


def test_a_server_and_a_client(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    names = run(SERVER_AND_CLIENT)
    assert names["responses"][0][0] in capfd.readouterr().out
    assert not names["server"].is_running()


def test_several_gpus(run: Run) -> None:
    names = run(SEVERAL_GPUS)
    assert [len(answers) for answers in names["responses"]] == [1] * 10
