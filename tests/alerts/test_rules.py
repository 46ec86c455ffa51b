"""Each rule: fires, stays silent, is not silenced by NaN, is not resolved by a gap, recovers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stabwatch.alerts import RULES, Engine
from stabwatch.runlog import Accumulator, Event, RecordBatch, RecordLayout
from tests.alerts.scenarios import Scenario, block, wave
from tests.alerts.test_layer_rules import SCENARIOS as LAYER_SCENARIOS

SCENARIOS = {
    "NonFinite": Scenario("activation a", wave(100), [math.inf]),
    "LossSpike": Scenario("loss", wave(100), [6.0] * 5),
    "LossDivergence": Scenario("loss", [8 - 0.05 * i for i in range(100)], [9.0] * 40),
    "GradientNormExplosion": Scenario("gradient_norm", wave(100, 1.0, 0.3), [50.0] * 5),
    "AttentionLogitGrowth": Scenario("lower a", wave(100, 12.0), [120.0] * 5),
    "OutputLogitDrift": Scenario("logits", wave(100, 5.0), [150.0] * 6),
    "ActivationOutlierGrowth": Scenario("activation a", wave(100, 10.0), [3000.0] * 4),
}
BY_EVENT = {"TrainingStopped", "RankHoldsUp", "OptimizerNeverSteps"}


def _fired(engine, rule):
    return [a for a in engine.history if a.rule == rule and a.state == "firing"]


def _after(rule, *parts):
    engine = Engine()
    first = 0
    for part in parts:
        piece = block({SCENARIOS[rule].series: part}, first)
        engine.observe(piece)
        first += len(piece)
    return engine


def test_every_rule_has_a_scenario_and_a_runbook():
    assert {r.name for r in RULES} == set(SCENARIOS) | set(LAYER_SCENARIOS) | BY_EVENT
    pages = Path(__file__).parents[2] / "docs" / "runbooks"
    for rule in RULES:
        text = (pages / f"{rule.name}.md").read_text(encoding="utf-8")
        for heading in ("What it means", "Confirm", "Do now", "Long term", "References"):
            assert f"## {heading}" in text, (rule.name, heading)
        assert rule.runbook_url.endswith(f"docs/runbooks/{rule.name}.md")
        assert rule.summary.endswith(".") and rule.remedy and rule.source


@pytest.mark.parametrize("rule", SCENARIOS)
def test_it_stays_silent_on_a_healthy_curve(rule):
    assert _after(rule, SCENARIOS[rule].calm).history == ()


@pytest.mark.parametrize("rule", SCENARIOS)
def test_it_fires(rule):
    scenario = SCENARIOS[rule]
    engine = _after(rule, scenario.calm, scenario.bad)
    fired = _fired(engine, rule)
    assert len({(a.signal, a.layer) for a in fired}) == 1
    assert all(len(scenario.calm) <= a.onset <= a.step for a in fired)
    assert fired[-1] in engine.active
    assert fired[-1].description and "nan" not in fired[-1].description


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("rule", SCENARIOS)
def test_a_value_that_is_not_finite_neither_silences_nor_resolves_it(rule, odd):
    scenario = SCENARIOS[rule]
    engine = _after(rule, scenario.calm, scenario.bad, [odd] * 30)
    assert any(a.rule == rule for a in engine.active)
    assert any(a.rule == "NonFinite" for a in engine.active)
    broken = [x for value in scenario.bad for x in (odd, value)]
    assert _fired(_after(rule, scenario.calm, broken), rule), "between the points"


@pytest.mark.parametrize("rule", SCENARIOS)
def test_a_gap_does_not_resolve_it(rule):
    scenario = SCENARIOS[rule]
    engine = _after(rule, scenario.calm, scenario.bad, [None] * 200)
    assert any(a.rule == rule for a in engine.active)


@pytest.mark.parametrize("rule", SCENARIOS)
def test_it_recovers(rule):
    scenario = SCENARIOS[rule]
    engine = _after(rule, scenario.calm, scenario.bad, scenario.calm[-70:])
    assert not any(a.rule == rule for a in engine.active)
    last = [a for a in engine.history if a.rule == rule][-1]
    assert last.state == "resolved" and last.step > last.onset


@pytest.mark.parametrize("rule", [r for r in SCENARIOS if len(SCENARIOS[r].bad) > 1])
def test_one_bad_point_is_not_enough(rule):
    scenario = SCENARIOS[rule]
    assert not _fired(_after(rule, scenario.calm, scenario.bad[:1], scenario.calm[-20:]), rule)


@pytest.mark.parametrize(("reason", "fires"), [("finished", False), ("exception", True), ("killed", True)])
def test_an_end_that_is_no_good_end_fires(reason, fires):
    engine = Engine()
    engine.observe(block({"loss": wave(10)}))
    out = engine.observe_event(Event("end", 1010.0, 9, {"reason": reason, "error": "boom"}))
    assert bool(out) is fires
    if fires:
        assert out[0].severity == "critical" and reason in out[0].description and "boom" in out[0].description
    assert engine.tick(1e9) == []
    engine.observe_event(Event("start", 1020.0, 0, {}))
    engine.observe(block({"loss": wave(3)}, 10))
    assert engine.active == ()
    assert engine.tick(1e9), "a run that goes on in its folder may stall again"


def test_silence_fires_and_the_next_record_resolves_it():
    engine = Engine()
    assert engine.tick(1e9) == [], "nothing recorded yet"
    engine.observe(block({"loss": wave(50)}))
    assert engine.tick(1049 + 59) == []
    (stalled,) = engine.tick(1049 + 61)
    assert (stalled.rule, stalled.severity, stalled.step) == ("TrainingStopped", "warning", 49)
    assert engine.tick(1049 + 90) == []

    out = engine.observe(block({"loss": wave(1)}, 50))
    assert [a.state for a in out] == ["resolved"]


def test_a_pause_like_those_before_is_no_stall():
    """An evaluation of 100 s every 50 steps: the first is new, later ones are not, and a real stall is one still."""
    engine, said, time = Engine(), 0, 0.0
    for step in range(0, 300, 50):
        steps = block({"loss": [2.0] * 50}, step)
        engine.observe(replace(steps, times=time + np.arange(50.0)))
        time += 49 + 100
        said += len(engine.tick(time - 1))
    assert said == 1
    assert engine.tick(time + 101)


def test_gradients_of_a_step_that_the_scaler_skipped_are_no_fault():
    series = {"gradient a": [0.0, 7.0, 0.0], "skipped": [0.0, 1.0, 0.0]}
    engine = Engine()
    engine.observe(block(series))
    assert engine.history == ()
    engine.observe(block({"gradient a": [7.0], "skipped": [0.0]}, 3))
    assert [a.layer for a in engine.active] == ["a"]


def test_growth_toward_the_limit_warns_before_it():
    engine = Engine()
    engine.observe(block({"lower a": [20 * math.exp(0.02 * i) for i in range(70)]}))
    first = engine.history[0]
    assert (first.severity, first.rule) == ("warning", "AttentionLogitGrowth")
    assert first.value < 100
    engine.observe(block({"lower a": [20 * math.exp(0.02 * i) for i in range(70, 100)]}, 70))
    assert [a.severity for a in engine.history] == ["warning", "critical"]
    assert len(engine.active) == 1 and engine.active[0].severity == "critical"
    assert "doubles every 34" in engine.active[0].description


@pytest.mark.parametrize(("rate", "warned"), [(0.001, False), (0.006, True)])
def test_the_growth_towards_the_limit_is_that_of_the_present(rate, warned):
    """Of looks that are 16 steps apart, 32 points reach back to when the logits were small."""
    engine = Engine()
    grown = [1.5**i for i in range(10)] + [40 * math.exp(16 * rate * i) for i in range(7)]
    engine.observe(block({"lower a": [grown[i // 16] if i % 16 == 0 else None for i in range(16 * len(grown))]}))
    assert bool(engine.history) == warned


def test_every_level_lies_outside_the_normal_range():
    """The engine looks no further when nothing is outside; and an onset is never later than the firing."""
    sure = {"nonfinite_new": "nonfinite"}  # the part is positive only where the whole is
    for rule in RULES:
        for level in rule.thresholds:
            when = {sure.get(c.gauge, c.gauge): c for c in level.when}
            for condition in rule.abnormal:
                inner, what = when[condition.gauge], (rule.name, level.severity, condition)
                assert condition.above is None or inner.above >= condition.above, what
                assert condition.below is None or inner.below <= condition.below, what


def _engine(series):
    engine = Engine()
    engine.observe(block(series))
    return engine


def test_a_model_that_came_with_large_attention_logits_is_information_until_they_grow():
    engine = _engine({"lower a": wave(100, 150.0)})
    assert [a.severity for a in engine.history] == ["info"]
    engine.observe(block({"lower a": [150 * math.exp(0.02 * i) for i in range(60)]}, 100))
    assert [a.severity for a in engine.history] == ["info", "critical"]


def test_a_mask_of_infinities_is_information_and_a_new_one_is_critical():
    masked = {"loss": wave(5, 2.0), "activation head": [math.inf] * 5, "activation a": [1.0] * 5}
    engine = _engine(masked)
    assert [(a.severity, a.layer) for a in engine.active] == [("info", "head")]
    assert "mask" in engine.active[0].summary
    engine.observe(block({"loss": [2.0], "activation head": [math.inf], "activation a": [math.inf]}, 5))
    assert [(a.severity, a.layer) for a in engine.active] == [("info", "head"), ("critical", "a")]
    broken = _engine({**masked, "loss": [math.nan] * 5})
    assert {a.severity for a in broken.active} == {"critical"}, "with a loss that is no number it is no mask"
    assert {a.severity for a in _engine({"activation head": [math.inf]}).active} == {"critical"}, "nor without a loss"


def test_a_branch_that_begins_at_zero_may_grow():
    assert _engine({"activation a": [0.0, *(min(20.0, 1e-6 * 2**i) for i in range(100))]}).history == ()


def test_output_logits_that_come_in_from_far_out_do_not_drift():
    assert _engine({"logits": [500 * 0.9**i + 3 for i in range(100)]}).history == ()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tail", [0.5, 2.0])
def test_heavy_tails_are_no_spikes(tail, seed):
    """A small-batch loss near zero: lognormal, most of it tiny, ten times the median every few steps."""
    rng = np.random.default_rng(seed)
    assert _engine({"loss": list(1e-3 * np.exp(tail * rng.standard_normal(8000)))}).history == ()


@pytest.mark.parametrize("seed", range(3))
def test_noise_without_progress_is_no_divergence(seed):
    rng = np.random.default_rng(seed)
    for loss in (2 + 0.02 * rng.standard_normal(8000), 0.3 * rng.standard_normal(8000), rng.gamma(2.0, 1.0, 8000)):
        assert _engine({"loss": list(loss)}).history == ()


def test_a_loss_that_swings_slowly_as_adversaries_do_is_no_divergence():
    swing = 0.9 + 0.15 * np.sin(np.arange(2000) / 40) + 0.05 * np.random.default_rng(0).standard_normal(2000)
    assert _engine({"loss": list(swing)}).history == ()


def test_a_negative_loss_may_spike_too():
    calm = list(-3 + 0.05 * np.random.default_rng(0).standard_normal(80))
    assert [a.rule for a in _engine({"loss": [*calm, -1.0, -0.8, -0.9]}).active] == ["LossSpike"]


def test_one_wild_first_loss_does_not_blind_the_divergence():
    series = [1e6, *(4 - 0.02 * i for i in range(100)), *([6.0] * 60)]
    assert "LossDivergence" in {a.rule for a in _engine({"loss": series}).history}


def test_a_gradient_norm_of_the_finite_rest_is_no_calm():
    """Without clipping the norm is that of the finite elements: near zero when a layer's gradient is all NaN."""
    accumulators = [Accumulator("gradient", "a", "moments")]
    layout = RecordLayout.build(accumulators)
    rows = [[100.0, size * size, 0.0, size] for size in [*wave(80, 1.0, 0.3), *([50.0] * 5)]] + [
        [100.0, 0, 100, 0]
    ] * 30
    steps = np.arange(len(rows))
    engine = Engine()
    engine.observe(RecordBatch(layout, steps, 1000.0 + steps, np.array(rows, np.float32)))
    assert [a.rule for a in engine.active] == ["GradientNormExplosion", "NonFinite"]


def test_an_alert_that_comes_and_goes_is_one_until_values_are_in_their_normal_range():
    """Half of the progress of the loss is lost, now a little more and now a little less: one alert, one resolution."""
    lost = [7.0 if i // 40 % 2 else 5.9 for i in range(320)]
    engine = _engine({"loss": [*[8 - 0.04 * i for i in range(100)], *lost, *[4.0] * 60]})
    assert [a.state for a in engine.history if a.rule == "LossDivergence"] == ["firing", "resolved"]
