"""From a configuration to a command line."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gllm import LLMConfig
from gllm.service.command import check, command


@pytest.fixture(autouse=True)
def vllm_is_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("app.engines.vllm.command.executable", lambda: "/opt/vllm")
    return iter(())


def argv(config: LLMConfig, gpus: list[int] | None = None, engine: Any = "vllm") -> list[str]:
    return list(command(config, engine, [0] if gpus is None else gpus, "127.0.0.1", 8100, 3).argv)


def test_vllm_gets_what_was_said_and_what_gserve_said_by_default() -> None:
    said = argv(LLMConfig("some/model"))
    assert said[:3] == ["/opt/vllm", "serve", "some/model"]
    assert {"--dtype=bfloat16", "--seed=0", "--tokenizer-mode=auto"} <= set(said)
    assert not [each for each in said if each.startswith(("--trust", "--quant", "--max-model", "--gpu-memory"))]


def test_every_field_has_its_option() -> None:
    config = LLMConfig(
        "m",
        tokenizer="t",
        tokenizer_mode="slow",
        trust_remote_code=True,
        dtype="half",
        quantization="awq",
        revision="r",
        tokenizer_revision="tr",
        seed=7,
        gpu_memory_utilization=0.5,
        enforce_eager=True,
        max_model_len=512,
        download_dir="/d",
    )
    assert set(argv(config)) >= {
        *("--tokenizer=t", "--tokenizer-mode=slow", "--trust-remote-code", "--dtype=half", "--quantization=awq"),
        *("--revision=r", "--tokenizer-revision=tr", "--seed=7", "--gpu-memory-utilization=0.5", "--enforce-eager"),
        *("--max-model-len=512", "--download-dir=/d"),
    }


def test_further_options_have_the_last_word() -> None:
    more = {
        "dtype": "auto",
        "enable_prefix_caching": False,
        "hf_overrides": {"a": 1},
        "lora_modules": ["x=y"],
        "z": None,
    }
    said = argv(LLMConfig("m", llm_kwargs=more))
    assert "--dtype=bfloat16" not in said
    assert {"--dtype=auto", "--no-enable-prefix-caching", '--hf-overrides={"a": 1}', "x=y"} <= set(said)
    assert "--z" not in said


def test_an_adapter_is_served_whatever_is_in_its_path() -> None:
    said = argv(LLMConfig("m", lora_path="/adapters/a=b,c"))
    assert "--enable-lora" in said
    adapter = json.loads(said[said.index("--lora-modules") + 1])
    assert adapter == {"name": "lora_adapter", "path": "/adapters/a=b,c"}


def test_the_gpus_are_the_only_ones_that_it_sees_and_are_used_together() -> None:
    made = command(LLMConfig("m"), "vllm", [2, 3], "127.0.0.1", 8100, None)
    assert made.env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert made.argv[made.argv.index("--tensor-parallel-size") + 1] == "2"


def test_without_gpus_the_engine_stays_on_the_cpu() -> None:
    made = command(LLMConfig("m"), "transformers", [], "127.0.0.1", 8100, 3)
    assert made.env["CUDA_VISIBLE_DEVICES"] == ""
    assert made.argv[made.argv.index("--device") + 1] == "cpu"


def test_the_log_level_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSERVE_LOG_LEVEL", "DEBUG")
    assert command(LLMConfig("m"), "vllm", [0], "127.0.0.1", 8100, None).env["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_what_the_transformers_engine_lacks_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="does not offer quantization, seed, lora_path"):
        check(LLMConfig("m", quantization="awq", seed=1, lora_path="/a"), "transformers")
    check(LLMConfig("m", enforce_eager=True, llm_kwargs={"max_num_seqs": 4}), "transformers")
    assert "--max-num-seqs=4" in argv(LLMConfig("m", llm_kwargs={"max_num_seqs": 4}), engine="transformers")


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"engine='sglang' is none of 'transformers', 'vllm'\."):
        check(LLMConfig("m"), "sglang")  # type: ignore[arg-type]


def test_an_engine_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.vllm.command.executable", lambda: None)
    with pytest.raises(RuntimeError, match=r"engine='vllm' needs vLLM .* install the extra 'vllm'\."):
        argv(LLMConfig("m"))
