"""The engine: the same result however the records come, onsets, derived gauges against scipy."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.alerts import DERIVED, Alert, Engine
from stabwatch.alerts.statistics import exceeds, median, slope
from stabwatch.runlog import RecordBatch, RecordLayout, SeriesKey
from tests.alerts.scenarios import accumulator, block, wave

POINT = st.one_of(st.none(), st.floats(0.01, 1e4), st.just(math.nan))


def _state(engine):
    return engine.history, engine.active, engine.derived


@given(
    st.fixed_dictionaries(
        {
            "loss": st.lists(POINT, max_size=120),
            "lower a": st.lists(POINT, max_size=120),
            "lower b": st.lists(POINT, max_size=120),
            "activation a": st.lists(POINT, max_size=120),
            "gradient_norm": st.lists(POINT, max_size=120),
        }
    ),
    st.lists(st.integers(1, 40), max_size=4),
)
def test_one_by_one_or_in_blocks_is_the_same(series, cuts):
    whole = block(series)
    together, one_by_one, in_parts = Engine(), Engine(), Engine()
    together.observe(whole)
    for i in range(len(whole)):
        one_by_one.observe(_part(whole, i, i + 1))
    start = 0
    for cut in [*cuts, len(whole)]:
        in_parts.observe(_part(whole, start, min(len(whole), start + cut)))
        start += cut
    assert _state(together) == _state(one_by_one) == _state(in_parts)


def _part(b, start, stop):
    return RecordBatch(b.layout, b.steps[start:stop], b.times[start:stop], b.rows[start:stop])


def test_a_table_that_grows_keeps_the_past_of_its_layers():
    narrow, wide = ["loss", "lower a"], ["lower new", "loss", "lower a", "activation a"]
    values = {"loss": wave(90), "lower a": [10.0] * 60 + [150.0] * 30}
    one = Engine()
    one.observe(block(values))
    two = Engine()
    two.observe(block({n: values[n][:61] for n in narrow}))
    layout = RecordLayout.build(accumulator(n) for n in wide)
    two.observe(block({n: values[n][61:] for n in narrow}, 61, layout))
    assert one.history == two.history
    assert [(a.layer, a.onset, a.step) for a in one.history] == [("a", 60, 62)]


EARLY = ("loss", "lower a", "gradient_norm")
LATE = ("lower b", "activation c", "logits")


@given(
    st.fixed_dictionaries({name: st.lists(POINT, min_size=60, max_size=60) for name in EARLY}),
    st.fixed_dictionaries({name: st.lists(POINT, max_size=60) for name in LATE}),
    st.integers(1, 59),
)
def test_layers_that_appear_in_a_later_segment_change_nothing_for_the_others(early, late, cut):
    late = {name: values[cut:] for name, values in late.items()}
    one, two = Engine(), Engine()
    one.observe(block({**early, **{name: [*([None] * cut), *values] for name, values in late.items()}}))
    two.observe(block({name: values[:cut] for name, values in early.items()}))
    two.observe(block({**late, **{name: values[cut:] for name, values in early.items()}}, cut))
    assert sorted(one.history, key=_by_place) == sorted(two.history, key=_by_place)
    assert one.derived == two.derived


def _by_place(alert):
    return alert.step, alert.rule, alert.signal, alert.layer, alert.state


def test_a_run_that_goes_on_from_an_earlier_step_begins_its_past_anew():
    """From a checkpoint in the same folder: the loss is higher than its best was, and nothing has diverged."""
    engine = Engine()
    engine.observe(block({"loss": [8 - 0.05 * i for i in range(120)], "lower a": [10.0] * 110 + [150.0] * 10}))
    assert [a.rule for a in engine.active] == ["AttentionLogitGrowth"]
    out = engine.observe(block({"loss": [7.5 - 0.05 * i for i in range(60)], "lower a": [10.0] * 60}, 10))
    assert [(a.rule, a.state) for a in out] == [("AttentionLogitGrowth", "resolved")]


def test_the_onset_is_the_first_step_of_the_unbroken_stretch():
    engine = Engine()
    engine.observe(block({"lower a": [10.0] * 20 + [35.0] * 3 + [10.0] * 5 + [35.0] * 7 + [110.0] * 5}))
    assert {a.onset for a in engine.history} == {28}


def test_between_two_records_it_can_have_begun_at_any_step():
    """Every eighth step is measured; a guard goes back to before the first step that nobody saw."""
    sparse = block({"gradient_norm": [*wave(40), *([9e3] * 8)]})
    engine = Engine()
    engine.observe(replace(sparse, steps=8 * np.arange(48)))
    found = next(a for a in engine.history if a.rule == "GradientNormExplosion")
    assert (found.since, found.onset) == (8 * 39 + 1, 8 * 40)
    assert Alert.from_event(found.to_event()).since == found.since
    dense = Engine()
    dense.observe(sparse)
    assert {a.since for a in dense.history} == {a.onset for a in dense.history} == {40}


def test_runs_that_lack_signals_and_empty_blocks_are_no_trouble():
    for series in ({}, {"loss": []}, {"activation a": wave(50)}, {"learning_rate": [0.1] * 50}):
        engine = Engine()
        engine.observe(block(series))
        assert engine.history == ()


def test_the_trend_is_that_of_linregress():
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 5, (6, 32)), axis=1).astype(float)
    values = rng.standard_normal((6, 32)) + 0.3 * steps
    steps[3, 20:] = values[3, 20:] = np.nan
    for row, found in enumerate(slope(steps, values)):
        seen = ~np.isnan(steps[row])
        assert found == pytest.approx(scipy.stats.linregress(steps[row][seen], values[row][seen]).slope, rel=1e-12)
    assert np.isnan(slope(steps[:, :3], values[:, :3])).all()


def test_the_robust_z_is_that_of_scipy():
    values = np.array(wave(100, 3.0, 0.2, seed=3), np.float32).astype(float)
    engine = Engine()
    engine.observe(block({"loss": list(values)}))
    past = values[-65:-1]
    scale = scipy.stats.median_abs_deviation(np.log(past), scale="normal")
    truth = (np.log(values[-1]) - np.median(np.log(past))) / scale
    assert engine.derived[SeriesKey("loss_robust_z")] == pytest.approx(truth, rel=1e-4)
    assert engine.derived[SeriesKey("loss_to_median_ratio")] == pytest.approx(values[-1] / np.median(past), rel=1e-6)


def test_the_robust_z_of_a_loss_that_goes_below_zero_is_linear():
    values = np.array([x - 3 for x in wave(100, 3.0, 0.2, seed=3)], np.float32).astype(float)
    engine = Engine()
    engine.observe(block({"loss": list(values)}))
    past = values[-65:-1]
    truth = (values[-1] - np.median(past)) / scipy.stats.median_abs_deviation(past, scale="normal")
    assert engine.derived[SeriesKey("loss_robust_z")] == pytest.approx(truth, rel=1e-4)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=70))
def test_the_quick_median_is_the_median(values):
    assert median(np.array(values)) == pytest.approx(np.median(values), rel=1e-12, abs=1e-12)


def test_the_lost_share_is_that_of_medians_of_sixteen():
    values = [*np.linspace(8, 3, 80), *([5.5] * 16)]
    engine = Engine()
    engine.observe(block({"loss": values}))
    first, best = np.median(values[:16]), np.median(values[64:80])
    truth = (5.5 - best) / max(first - best, best)
    assert engine.derived[SeriesKey("loss_regression_ratio")] == pytest.approx(truth, rel=1e-6)


@given(*[st.lists(st.integers(0, 6), min_size=1, max_size=40)] * 2)
def test_the_share_of_pairs_is_that_of_mann_and_whitney(some, others):
    found = exceeds(np.array(some, float), np.array(others, float))
    u = scipy.stats.mannwhitneyu(some, others, method="asymptotic").statistic
    assert found == pytest.approx(u / (len(some) * len(others)), abs=1e-12)


def test_a_score_is_a_correlation_times_doublings():
    """The loss, best at the 40th step, is worse in every pair at the end, and the rate has doubled twice since."""
    losses, rates = [*np.linspace(4, 2, 72), *([3.0] * 32)], [*([1e-3] * 72), *([4e-3] * 32)]
    engine = Engine()
    engine.observe(block({"loss": losses, "learning_rate": rates}))
    found = {
        name: engine.derived[SeriesKey(name)] for name in ("loss_best_exceedance_ratio", "learning_rate_rise_ratio")
    }
    share = np.mean(np.array(losses[-32:])[:, None] > np.array(losses[40:72]))
    assert found["loss_best_exceedance_ratio"] == pytest.approx(share) == 1
    assert found["learning_rate_rise_ratio"] == pytest.approx(4)
    assert engine.derived[SeriesKey("warm_up_loss_rise_score")] == pytest.approx((2 * share - 1) * 2)


def test_a_loss_below_zero_that_comes_back_to_zero_has_not_diverged():
    """As that of a policy gradient does when all is learned; above zero it counts."""
    learned = [*np.linspace(-0.2, -1.2, 100), *np.linspace(-1.2, -0.05, 100), *wave(100, -0.05, 0.01)]
    engine = Engine()
    engine.observe(block({"loss": learned}))
    assert not [a for a in engine.history if a.rule == "LossDivergence"]
    engine.observe(block({"loss": [0.8] * 60}, 300))
    assert [a.rule for a in engine.active if a.rule == "LossDivergence"]


def test_a_noisy_loss_that_jumps_by_a_third_has_shifted():
    """No value of it is a spike: its scatter is a fifth, as in small batches with labels that turned wrong."""
    rng = np.random.default_rng(3)
    calm = 1.85 + rng.uniform(-0.4, 0.4, 200)
    engine = Engine()
    engine.observe(block({"loss": list(calm)}))
    assert engine.history == ()
    engine.observe(block({"loss": list(np.linspace(2.8, 2.4, 14) + rng.uniform(-0.1, 0.1, 14))}, 200))
    assert [a.rule for a in engine.history] == ["LossShift"]


def test_the_exact_value_and_the_bracket_are_one_bound():
    engine = Engine()
    engine.observe(block({"lower a": [10.0, 10.0], "exact a": [None, 14.0]}))
    assert engine.derived[SeriesKey("attention_logit_bound", "a")] == 14.0


def test_a_gauge_that_is_no_number_any_more_is_absent_and_not_old():
    engine = Engine()
    key = SeriesKey("attention_logit_steps_to_limit", "a")
    engine.observe(block({"lower a": [10 * math.exp(0.05 * i) for i in range(30)]}))
    assert engine.derived[key] > 0
    engine.observe(block({"lower a": [5.0] * 60}, 30))
    assert key not in engine.derived


def test_what_is_derived_is_declared():
    engine = Engine()
    names = ("loss", "lower a", "activation a", "gradient_norm", "logits")
    engine.observe(block({name: wave(100, 9.0) for name in names}))
    assert {key.signal for key in engine.derived} <= {d.name for d in DERIVED}
    assert len({d.name for d in DERIVED}) == len(DERIVED)


def test_five_hundred_series_take_about_a_millisecond(capsys):
    names = ["loss", "gradient_norm", *(f"{kind} {i}" for i in range(80) for kind in ("lower", "activation"))]
    whole = block({name: wave(200, 9.0, seed=i) for i, name in enumerate(names)})
    assert len(whole.layout.series) >= 500
    engine, seconds = Engine(), []
    for i in range(len(whole)):
        part = _part(whole, i, i + 1)
        began = time.perf_counter()
        engine.observe(part)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    with capsys.disabled():
        print(f" [{len(whole.layout.series)} series: {median * 1e3:.2f} ms a record]", end="")
    assert median < 0.01
