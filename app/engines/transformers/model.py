"""Loading a model: which device, which numbers, which context; or one clear sentence why not."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.engines.transformers import attention
from app.engines.transformers.manager import Limits
from app.engines.transformers.tokens import Tokens

log = logging.getLogger(__name__)

Tell = Callable[[str], None]

DEFAULT_CONTEXT = 2048
CPU_CACHE_SHARE = 0.25
"""Of the memory that is free when the model is loaded."""


class LoadFailed(Exception):
    """The model cannot be served; the message is for the person who started the engine."""


@dataclass(frozen=True)
class Loaded:
    network: Any
    tokens: Tokens
    context: int
    eos: frozenset[int]
    defaults: Mapping[str, float]
    """The sampling that the model's makers recommend (`generation_config.json`), for what a request leaves open."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.network.device
        return device

    def embed(self, prompt: list[int]) -> Tensor | None:
        """The mean of the last hidden states, of length one; None if the model does not show them."""
        base = getattr(self.network, "base_model", None)
        if base is None or base is self.network:
            return None
        with torch.inference_mode():
            out = base(input_ids=torch.tensor([prompt], device=self.device), use_cache=False)
        states = getattr(out, "last_hidden_state", None)
        if states is None:
            return None
        return torch.nn.functional.normalize(states[0].float().mean(dim=0), dim=0).cpu()


def load(name: str, *, device: str, dtype: str, tell: Tell) -> Loaded:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = _device(device)
    if place.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))  # one is left for HTTP; sharing it slows both
    numbers = _dtype(dtype, place)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tell(f"loading weights device={place} dtype={str(numbers).removeprefix('torch.')}")
        network = AutoModelForCausalLM.from_pretrained(name, dtype=numbers, trust_remote_code=False)
    except Exception as error:  # a loader may fail in any way: what it says is told in one line
        log.debug("loading failed", exc_info=True)
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise LoadFailed(f"The model {name} cannot be loaded: {reason}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise LoadFailed(f"The model {name} has no fast tokenizer (tokenizer.json).")
    network = network.eval().to(place)
    text = config.get_text_config()
    generation = network.generation_config
    eos = {id_ for id_ in _as_list(generation.eos_token_id) + _as_list(tokenizer.eos_token_id) if id_ is not None}
    return Loaded(
        network=network,
        tokens=Tokens(tokenizer, text.vocab_size),
        context=int(getattr(text, "max_position_embeddings", None) or DEFAULT_CONTEXT),
        eos=frozenset(eos),
        defaults=_recommended(generation),
    )


def limits_for(model: Loaded, *, max_sequences: int, max_batch_tokens: int | None, num_blocks: int | None) -> Limits:
    """Sizes that fit the device. On a GPU the cache takes what memory is left; elsewhere a part of it."""
    page = 16 if attention.fits(model.network) else 256  # flash attention reads pages of 256
    if model.device.type != "cpu":
        return Limits(max_batch_tokens or 4096, max_sequences, num_blocks, page)
    if num_blocks is None:
        import psutil

        text = model.network.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        token_bytes = 2 * text.num_hidden_layers * heads * width * model.network.dtype.itemsize
        affordable = int(psutil.virtual_memory().available * CPU_CACHE_SHARE) // (token_bytes * page)
        useful = max_sequences * -(-model.context // page)
        num_blocks = max(1, min(affordable, useful))
    return Limits(max_batch_tokens or 1024, max_sequences, num_blocks, page)


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise LoadFailed("There is no CUDA device here: start with --device cpu, or give the process a GPU.")
    return torch.device(wanted)


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found: torch.dtype = getattr(torch, wanted)
    return found


def _as_list(value: int | list[int] | None) -> list[int | None]:
    return list(value) if isinstance(value, list) else [value]


def _recommended(generation: Any) -> dict[str, float]:
    told = generation.to_diff_dict()
    names = ["repetition_penalty"]
    if told.get("do_sample"):
        names += ["temperature", "top_p", "top_k", "min_p"]
    return {name: told[name] for name in names if told.get(name) is not None}
