"""What stands in the README of GLLM, run against ours. Without its `load_model`: the demo model is there already."""

import subprocess
import sys
from pathlib import Path

import pytest

from gllm import GLLM
from tests.support.processes import Engine, GatewayProcess, clean_environment, comes_true

CLIENT_USAGE = """
import gllm

client = gllm.GLLM("{url}")
client.wait_for_health()
response = client.get_completions(
    model="demo",
    prompt="Tell me a joke about programming",
    max_tokens=100,
    temperature=0.7,
    return_mode="primitives"
)
print(response[0])
"""

FIVE = """
from gllm import GLLM
client = GLLM("{url}", api_key="your-api-key")
results = client.get_completions(
    model="demo",
    prompt="Once upon a time",
    max_tokens=50,
    temperature=0.8,
    n=5,
    return_mode="primitives"
)
assert len(results) == 5 and all(isinstance(each, str) for each in results)
print(results)
"""

CAPITAL = """
from gllm import GLLM
client = GLLM("{url}/")
messages = [
    {{"role": "system", "content": "You are a helpful assistant"}},
    {{"role": "user", "content": "What is the capital of France?"}}
]
response = client.get_chat_completion(
    model="demo",
    messages=messages,
    max_tokens=100,
    temperature=0.7,
    return_mode="primitives"
)
print(response[0]["role"], response[0]["content"])
"""

PARALLEL = """
import gllm
from concurrent.futures import ThreadPoolExecutor

client = gllm.GLLM("{url}")
client.wait_for_health()

def get_completion(prompt):
    return client.get_completions(
        model="demo",
        prompt=prompt,
        max_tokens=100,
        temperature=0.7,
        return_mode="primitives"
    )[0]

prompts = [f"Tell me a joke about {{topic}}" for topic in ["cats", "dogs", "birds", "fish"]]

# Submit 4 parallel requests
with ThreadPoolExecutor(max_workers=4) as executor:
    futures = [executor.submit(get_completion, p) for p in prompts]
    results = [future.result() for future in futures]

for prompt, result in zip(prompts, results):
    print(f"\\n{{prompt}}\\n{{result}}\\n{{'-'*50}}")
"""

CONVERSATION = """
import gllm

client = gllm.GLLM("{url}")
client.wait_for_health()

messages = [
    {{"role": "system", "content": "You are a helpful coding assistant"}},
    {{"role": "user", "content": "How do I reverse a list in Python?"}}
]

response = client.get_chat_completion(
    model="demo",
    messages=messages,
    max_tokens=200,
    temperature=0.5,
    return_mode="openai"
)

print(response.choices[0].message.content)
assert response.choices[0].content == response.choices[0].message.content
"""


@pytest.mark.parametrize("example", [CLIENT_USAGE, FIVE, CAPITAL, PARALLEL, CONVERSATION])
def test_an_example_of_gllm_runs_unchanged(gateway: GatewayProcess, tmp_path: Path, example: str) -> None:
    code = example.format(url=gateway.url)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_stream_that_is_left_early_stops_the_real_engine(engine: Engine, gateway: GatewayProcess) -> None:
    aborted = engine.aborted()
    with (
        GLLM(gateway.url) as client,
        client.stream_completions("demo", "On and on", max_tokens=1_500, extra_body={"ignore_eos": True}) as stream,
    ):
        next(stream)
    assert comes_true(lambda: (engine.at_work(), engine.aborted()) == (0, aborted + 1), limit_s=2)


def test_every_parameter_of_gllm_is_taken(gateway: GatewayProcess) -> None:
    with GLLM(gateway.url) as client:
        answer = client.get_completions(
            "demo",
            "Docker is",
            echo=True,
            frequency_penalty=0.1,
            logit_bias={"5": -1.0},
            max_tokens=5,
            min_p=0.01,
            n=2,
            presence_penalty=0.1,
            seed=3,
            stop=["\n\n\n"],
            temperature=0.5,
            top_p=0.9,
            priority="batch",
            session_id="s-1",
            timeout_s=30,
        )
    assert len(answer.choices) == 2
    assert answer.choices[0].text.startswith("Docker is")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens
