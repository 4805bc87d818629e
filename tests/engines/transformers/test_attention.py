"""Paged attention gives what the model computes without any cache, and to the last bit whatever stands beside it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engines.transformers.attention import PagedAttention, Plan, Span, padded

PAGE, HEADS, KEY_HEADS, WIDTH = 4, 4, 2, 16


class Store:
    """One layer's pages, in place of the allocator."""

    index = 0

    def __init__(self, pages: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.keys, self.values = torch.randn(2, pages, PAGE, KEY_HEADS, WIDTH, generator=generator)
        self.layer_to_allocator = {0: self}

    def write(
        self, layer: int, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.view(-1, KEY_HEADS, WIDTH).index_copy_(0, index, keys)
        self.values.view(-1, KEY_HEADS, WIDTH).index_copy_(0, index, values)
        return self.keys, self.values


class Module:
    layer_idx = 0


def attend(store: Store, spans: list[Span], seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention of a batch, and its queries."""
    count = sum(span.queries for span in spans)
    generators = [torch.Generator().manual_seed(seed + span.pages[0]) for span in spans]
    query = torch.cat(
        [torch.randn(1, HEADS, s.queries, WIDTH, generator=g) for s, g in zip(spans, generators, strict=True)], 2
    )
    key, value = (
        torch.cat(
            [torch.randn(1, KEY_HEADS, s.queries, WIDTH, generator=g) for s, g in zip(spans, generators, strict=True)],
            2,
        )
        for _ in range(2)
    )
    index = [s.pages[(s.past + i) // PAGE] * PAGE + (s.past + i) % PAGE for s in spans for i in range(s.queries)]
    attention = PagedAttention()
    attention.plan = Plan(spans, PAGE, torch.float32, torch.device("cpu"))
    kwargs = {"write_index": [torch.tensor(index)]}
    out, _ = attention(Module(), query, key, value, None, scaling=WIDTH**-0.5, cache=store, **kwargs)
    assert out.shape == (1, count, HEADS, WIDTH)
    return out, query


def by_hand(store: Store, span: Span, query: torch.Tensor) -> torch.Tensor:
    """Row by row, with a plain softmax."""
    keys = store.keys[span.pages].reshape(-1, KEY_HEADS, WIDTH).repeat_interleave(HEADS // KEY_HEADS, 1)
    values = store.values[span.pages].reshape(-1, KEY_HEADS, WIDTH).repeat_interleave(HEADS // KEY_HEADS, 1)
    rows = []
    for at in range(span.queries):
        seen = span.past + at + 1
        scores = torch.einsum("hd,khd->hk", query[0, :, span.start + at], keys[:seen]) * WIDTH**-0.5
        rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values[:seen]))
    return torch.stack(rows)


def spans_of(shapes: list[tuple[int, int]]) -> list[Span]:
    """Spans with as many queries and as much past as told, on pages of their own."""
    spans, start, page = [], 0, 1
    for queries, past in shapes:
        used = -(-(queries + past) // PAGE)
        spans.append(Span(start, queries, past, list(range(page, page + used))))
        start, page = start + queries, page + used
    return spans


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), min_size=1, max_size=6))
def test_it_is_attention(shapes: list[tuple[int, int]]) -> None:
    store = Store(128)
    spans = spans_of(shapes)
    out, query = attend(store, spans)
    for span in spans:
        expected = by_hand(store, span, query)
        assert torch.allclose(out[0, span.start : span.start + span.queries], expected, atol=1e-5)


@given(st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5))
def test_a_decoding_sequence_gets_the_same_bits_in_any_company(past: int, others: list[int]) -> None:
    spans = spans_of([(1, past), *((1, other) for other in others)])
    alone, _ = attend(Store(128), spans[:1])
    together, _ = attend(Store(128), spans)
    assert torch.equal(alone[0, 0], together[0, 0])


@given(st.integers(1, 5000))
def test_padding_wastes_at_most_half(pages: int) -> None:
    assert pages <= padded(pages) <= max(4, pages * 3 // 2)
