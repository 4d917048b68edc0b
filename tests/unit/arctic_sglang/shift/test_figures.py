"""Figures by hand, and the same at Prometheus on a registry of its own."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from arctic_sglang.shift.figures import ExchangeTimes, Figures
from arctic_sglang.shift.metrics import ShiftMetrics
from arctic_sglang.shift.policy import Mode

TP, SP = Mode.TENSOR, Mode.SEQUENCE
LABELS = {"model_name": "m", "tp_rank": 0}


def value(registry, name, **labels):
    told = {"model_name": "m", "tp_rank": "0", **labels}
    return registry.get_sample_value(f"arctic:shift_{name}_total", told)


def test_times_between_below_and_above_what_was_measured():
    times = ExchangeTimes(3, {64: 0.002, 16: 0.001, 128: 0.006})
    wanted = {1: 0.003, 16: 0.003, 40: 0.0045, 64: 0.006, 96: 0.012, 128: 0.018, 384: 0.054}
    assert {tokens: times.seconds(tokens) for tokens in wanted} == pytest.approx(wanted)
    assert json.loads(json.dumps(times.told())) == pytest.approx({"16": 0.003, "64": 0.006, "128": 0.018})
    one = ExchangeTimes(2, {8: 0.5})
    assert [one.seconds(tokens) for tokens in (1, 8, 16)] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("measured", [{}, {8: -1.0}, {8: float("nan")}, {8: float("inf")}])
def test_times_that_are_none_are_refused(measured):
    with pytest.raises(ValueError, match="at least one size is wanted"):
        ExchangeTimes(2, measured)


def test_sums_by_hand():
    figures = Figures(exchange=ExchangeTimes(1, {10: 0.5}))
    for mode, tokens in ((SP, 20), (SP, 5), (TP, 3), (TP, 0), (SP, 10)):
        figures.count(mode, tokens)
    assert figures.told() == {
        "steps": {"tp": 2, "sp": 3}, "tokens": {"tp": 3, "sp": 35}, "switches": 2, "exchange_seconds": 2.0,
        "exchange_seconds_of_a_step": {"10": 0.5},
    }  # fmt: skip


STEPS = st.lists(st.tuples(st.sampled_from(Mode), st.integers(0, 300)))


@given(STEPS, STEPS)
def test_prometheus_has_what_was_counted_before_and_after_it_was_there(before, after):
    registry = CollectorRegistry()
    figures = Figures(exchange=ExchangeTimes(4, {8: 0.001, 64: 0.002}))
    for step in before:
        figures.count(*step)
    figures.publish(ShiftMetrics(LABELS, registry=registry))
    for step in after:
        figures.count(*step)
    for mode in Mode:
        assert value(registry, "steps", mode=mode.value) == figures.steps[mode]
        assert value(registry, "tokens", mode=mode.value) == figures.tokens[mode]
    assert value(registry, "switches") == figures.switches
    assert value(registry, "exchange_seconds") == pytest.approx(figures.exchange_seconds)
    assert sum(figures.steps.values()) == len(before) + len(after)
