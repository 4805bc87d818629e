"""A small LoRA adapter for the demo model, in the files that `peft` would write."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.support.processes import ROOT

RANK = 4
STRENGTH = 0.5
"""Far beyond what training gives, so that another answer is certain."""


def write_adapter(folder: Path, seed: int = 0) -> Path:
    """Two random factors for each of the attention's projections: no answer stays what it was."""
    model = json.loads((ROOT / "models" / "demo" / "config.json").read_text())
    hidden, head = model["hidden_size"], model["head_dim"]
    widths = {"q_proj": model["num_attention_heads"] * head, "v_proj": model["num_key_value_heads"] * head}
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for layer in range(model["num_hidden_layers"]):
        for projection, width in widths.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            weights[f"{name}.lora_A.weight"] = random.normal(0, STRENGTH, (RANK, hidden)).astype(np.float32)
            weights[f"{name}.lora_B.weight"] = random.normal(0, STRENGTH, (width, RANK)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "demo",
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(widths),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
