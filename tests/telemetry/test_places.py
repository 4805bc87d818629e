"""Which traces are kept: what OpenTelemetry's own samplers say, which are not asked where a comparison will do."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import (
    DEFAULT_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind

from app.telemetry.tracing import places
from app.telemetry.tracing.places import Places
from app.trace import Trace

RATIOS = (0.0, 1e-6, 0.01, 0.25, 0.5, 0.999, 1.0)
Kind = type[ParentBasedTraceIdRatio] | type[TraceIdRatioBased]
KINDS: tuple[Kind, ...] = (ParentBasedTraceIdRatio, TraceIdRatioBased)


def sdk_keeps(sampler: Sampler, trace_id: str, parent: Trace | None) -> bool:
    context = places._NO_PARENT if parent is None else places._as_context(parent)
    said = sampler.should_sample(context, int(trace_id, 16), "/", SpanKind.SERVER)
    return said.decision is Decision.RECORD_AND_SAMPLE


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_that_begins_here_is_kept_if_the_sdks_sampler_keeps_it(kind: Kind, ratio: float) -> None:
    sampler = kind(ratio)
    begun = [Places(sampler).begin(None, "/") for _ in range(5_000)]
    assert [each.sampled for each in begun] == [sdk_keeps(sampler, each.trace_id, None) for each in begun]
    assert sum(each.sampled for each in begun) == pytest.approx(5_000 * ratio, abs=200)


@pytest.mark.parametrize("kind", KINDS)
@given(st.floats(0, 1), st.integers(-2, 2), st.integers(0, 2**64 - 1))
def test_near_its_bound_too(kind: Kind, ratio: float, off: int, upper: int) -> None:
    lower = min(max(0, TraceIdRatioBased.get_bound_for_rate(ratio) + off), 2**64 - 1)
    trace_id, sampler = f"{upper << 64 | lower:032x}", kind(ratio)
    assert places._rule_of(sampler)(trace_id, None, "/") is sdk_keeps(sampler, trace_id, None)


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
@pytest.mark.parametrize("sampler", [*(kind(ratio) for kind in KINDS for ratio in (0.0, 0.5, 1.0)), DEFAULT_ON])
def test_of_a_callers_trace_too(sampler: Sampler, flags: int) -> None:
    dice, ours = random.Random(flags), Places(sampler)
    for _ in range(200):
        parent = Trace(f"{dice.getrandbits(128):032x}", "b" * 16, flags, state="theirs=1")
        begun = ours.begin(parent, "/")
        assert (begun.trace_id, begun.parent_id, begun.state) == (parent.trace_id, "b" * 16, "theirs=1")
        assert begun.sampled is sdk_keeps(sampler, parent.trace_id, parent)


def test_the_usual_samplers_are_not_asked_and_any_other_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    keeps = TraceIdRatioBased.should_sample

    def told(self: TraceIdRatioBased, *args: object, **named: object) -> object:
        asked.append(type(self).__name__)
        return keeps(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(TraceIdRatioBased, "should_sample", told)
    for kind in KINDS:
        Places(kind(0.5)).begin(None, "/")
    assert asked == []
    Places(ParentBased(TraceIdRatioBased(0.5))).begin(None, "/")
    Places(type("Own", (TraceIdRatioBased,), {})(0.5)).begin(None, "/")
    assert asked == ["TraceIdRatioBased", "Own"]


def test_ids_are_as_the_trace_context_wants_them() -> None:
    begun = Places(TraceIdRatioBased(0)).begin(None, "/")
    assert (len(begun.trace_id), len(begun.span_id)) == (32, 16)
    assert begun.trace_id == begun.trace_id.lower()
    assert int(begun.trace_id, 16) > 0 < int(begun.span_id, 16)
