"""Paged attention without flash attention: every sequence attends to its own pages, and to nothing else.

Where that is missing `transformers` lays all sequences of a batch side by side and masks what is not theirs. Each of n
sequences then pays for the keys of all n: 32 of them with 300 tokens take five times as long as they need to, and a
sequence's last bits depend on its neighbours. Here single tokens (decoding) are grouped by length and padded, each
group one call; longer runs (prefill) are attended to one by one. The padding of a sequence depends on its own length
only, so its attention is the same to the last bit, whatever else is in the batch.

This file knows the inside of `transformers`' allocator (written against 5.23) and nothing else of the engine does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.generation.continuous_batching.cache import ATTN_TYPE_TO_ALLOCATOR
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.cache_allocators.full_attention import FullAttentionCacheAllocator
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "gllm_paged"


class Span(NamedTuple):
    """One sequence's part of the batch: which queries are its own, what it has in the cache, and on which pages."""

    start: int
    queries: int
    past: int
    pages: list[int]


@dataclass(frozen=True)
class _Singles:
    """Sequences with one query each and about the same length."""

    rows: Tensor  # [n], places in the batch
    pages: Tensor  # [n * pages]
    mask: Tensor  # [n, 1, 1, pages * tokens a page]


@dataclass(frozen=True)
class _Run:
    """One sequence with several queries."""

    start: int
    end: int
    pages: Tensor | None  # None: nothing in the cache, the new keys are all there is
    mask: Tensor | None


class Plan:
    """Where each sequence of a batch finds its keys. Made once a step, used by all layers."""

    def __init__(self, spans: Sequence[Span], page_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.page_size = page_size
        self._dtype, self._device = dtype, device
        self.runs = [self._run(span) for span in spans if span.queries > 1]
        groups: dict[int, list[Span]] = {}
        for span in spans:
            if span.queries == 1:
                groups.setdefault(padded(-(-(span.past + 1) // page_size)), []).append(span)
        self.singles = [self._singles(pages, group) for pages, group in groups.items()]

    def _singles(self, pages: int, spans: list[Span]) -> _Singles:
        device = self._device
        table = [span.pages[:pages] + [0] * (pages - len(span.pages)) for span in spans]  # page 0 is never allocated
        places = torch.arange(pages * self.page_size, device=device)
        lengths = torch.tensor([span.past + 1 for span in spans], device=device)
        mask = torch.zeros(len(spans), pages * self.page_size, dtype=self._dtype, device=device)
        mask.masked_fill_(places.unsqueeze(0) >= lengths.unsqueeze(1), torch.finfo(self._dtype).min)
        rows = torch.tensor([span.start for span in spans], device=device)
        return _Singles(rows, torch.tensor(table, device=device).flatten(), mask[:, None, None, :])

    def _run(self, span: Span) -> _Run:
        end = span.start + span.queries
        if not span.past:
            return _Run(span.start, end, None, None)
        total = span.past + span.queries
        mask = torch.full((span.queries, total), torch.finfo(self._dtype).min, dtype=self._dtype, device=self._device)
        used = -(-total // self.page_size)
        pages = torch.tensor(span.pages[:used], device=self._device)
        return _Run(span.start, end, pages, mask.triu_(span.past + 1))


def padded(pages: int) -> int:
    """To how many pages a sequence is padded: two widths an octave, so at most half is wasted."""
    width = 4
    while width < pages:
        if width + width // 2 >= pages:
            return width + width // 2
        width *= 2
    return width


class PagedAllocator(FullAttentionCacheAllocator):  # type: ignore[misc]  # transformers ships no usable types here
    """The cache of the attention layers, read page by page."""

    supports_block_table = False

    def get_read_indices(self, request_id: str, past_length: int, query_length: int) -> list[int]:
        """None: a list of all cached tokens, made anew in each step, is what `Plan` saves."""
        return []

    def span(self, request_id: str, start: int, queries: int, past: int) -> Span:
        stride = self.block_physical_stride // self.tokens_per_page
        return Span(start, queries, past, [block * stride for block in self.block_table[request_id]])

    def write(self, layer: int, index: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values ([tokens, heads, width]); return all pages of the layer."""
        stored_keys, stored_values = self._kv_token_views[layer]
        stored_keys.index_copy_(0, index, keys)
        stored_values.index_copy_(0, index, values)
        pages: tuple[Tensor, Tensor] = self._kv_page_views[layer]
        return pages


class PagedAttention:
    """What the model calls in each layer. `plan` is set before each forward pass, by the one thread that runs them."""

    plan: Plan

    def __call__(
        self,
        module: Any,
        query: Tensor,  # [1, heads, queries, width]
        key: Tensor,  # [1, key heads, queries, width]
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if cache is None:  # an ordinary forward pass (embeddings)
            plain: tuple[Tensor, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, **kwargs
            )
            return plain
        layer: int = module.layer_idx
        allocator: PagedAllocator = cache.layer_to_allocator[layer]
        new_keys, new_values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        key_pages, value_pages = allocator.write(layer, kwargs["write_index"][allocator.index], new_keys, new_values)
        heads, key_heads, width = query.shape[1], key.shape[1], query.shape[3]
        out = torch.empty(1, query.shape[2], heads, width, dtype=query.dtype, device=query.device)
        for group in self.plan.singles:
            count = len(group.rows)
            keys = key_pages.index_select(0, group.pages).view(count, -1, key_heads, width).transpose(1, 2)
            values = value_pages.index_select(0, group.pages).view(count, -1, key_heads, width).transpose(1, 2)
            # heads that share a key head become queries of it: [sequences, key heads, heads a key head, width]
            queries = query[0].index_select(1, group.rows).transpose(0, 1).reshape(count, key_heads, -1, width)
            attended = scaled_dot_product_attention(queries, keys, values, attn_mask=group.mask, scale=scaling)
            out[0, group.rows] = attended.reshape(count, heads, width)
        for run in self.plan.runs:
            if run.pages is None:
                keys, values = key[:, :, run.start : run.end], value[:, :, run.start : run.end]
            else:
                assert run.mask is not None
                total = run.mask.shape[1]
                keys = key_pages.index_select(0, run.pages).view(1, -1, key_heads, width)[:, :total].transpose(1, 2)
                values = value_pages.index_select(0, run.pages).view(1, -1, key_heads, width)[:, :total].transpose(1, 2)
            attended = scaled_dot_product_attention(
                query[:, :, run.start : run.end],
                keys.repeat_interleave(heads // key_heads, dim=1) if heads != key_heads else keys,
                values.repeat_interleave(heads // key_heads, dim=1) if heads != key_heads else values,
                attn_mask=run.mask,
                is_causal=run.mask is None,
                scale=scaling,
            )
            out[:, run.start : run.end] = attended.transpose(1, 2)
        return out, None


def fits(model: Any) -> bool:
    """Whether to use it: the model's attention is of the plain kind, and there is no flash attention to be had."""
    on_gpu = model.device.type != "cpu"
    flash = any(find_spec(name) is not None for name in ("flash_attn", "flash_attn_interface"))
    return _is_plain(model) and not (on_gpu and flash and model._supports_flash_attn)


def _is_plain(model: Any) -> bool:
    """Whether every layer attends to all that came before, with no additions to the scores."""
    config = model.config.get_text_config()
    told = getattr(config, "layer_types", None)
    types = set(told or [FULL_ATTENTION])
    sliding = getattr(config, "sliding_window", None) is not None and not told
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    sinks = any("sinks" in name for name, _ in model.named_parameters())
    return types == {FULL_ATTENTION} and not (sliding or capped or sinks) and bool(model._supports_sdpa)


def register() -> PagedAttention:
    """Make attention and allocator known to `transformers`."""
    attention = PagedAttention()
    ATTN_TYPE_TO_ALLOCATOR[FULL_ATTENTION] = PagedAllocator
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    return attention
