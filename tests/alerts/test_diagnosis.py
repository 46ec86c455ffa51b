"""From alerts to words: what first, where, since when, and what the loss said."""

from __future__ import annotations

import json
import math

import pytest

from stabwatch.alerts import Engine, diagnose, diagnosis
from stabwatch.alerts.evidence import Evidence, RootCause
from stabwatch.alerts.root_causes import ROOT_CAUSES
from stabwatch.alerts.rule import Alert
from stabwatch.runlog import Event
from tests.alerts.scenarios import block, wave


def _diagnosis(series):
    engine = Engine()
    engine.observe(block(series))
    return diagnose(engine)


def test_a_healthy_run_and_an_empty_one_say_so():
    assert diagnose(Engine()).verdict == "Nothing has been recorded yet."
    assert _diagnosis({"loss": wave(50)}).verdict == "Nothing left its normal range up to step 49."


def test_the_verdict_names_the_first_layer_its_onset_and_what_the_loss_said():
    growing = [10 * math.exp(0.05 * i) for i in range(100)]
    found = _diagnosis({"loss": wave(100, 2.5, 0.01), "lower b": [5.0] * 20 + growing[:80], "lower a": growing})
    assert found.verdict.startswith(
        "Attention logits have grown beyond a safe size, first in layer a, since step 22. 2 layers"
    )
    assert "The loss did not show it: 2.5" in found.verdict
    assert found.causes[0].layers == ("a", "b")
    assert any("doubles every 13.9 steps" in line for line in found.causes[0].evidence)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("series", "rule"),
    [
        ({"loss": [2.0] * 20 + [0.1] * 20 + ([3.0] + [0.1] * 19) * 5, "speed": [32.0] * 140,
          "step_seconds": [1.0] * 140}, "LoneLosses"),
        ({"loss": [2.0] * 20 + [-2.0 * 1.1**i for i in range(80)]}, "LossWithoutBound"),
    ],
)  # fmt: skip
def test_a_rule_of_the_loss_does_not_say_that_the_loss_did_not_show_it(series, rule):
    found = _diagnosis(series)
    assert rule in [cause.name for cause in found.causes] or found.causes[0].name == "BadBatch"
    assert "did not show it" not in found.verdict


def test_a_loss_that_left_its_range_before_has_shown_it():
    calm, risen = wave(100, 1.0, 0.02), wave(200, 40.0, 0.02)
    found = _diagnosis({"loss": [*calm, *risen], "lower a": [10.0] * 180 + [150.0] * 120})
    assert "did not show it" not in found.verdict


def test_causes_come_in_the_order_of_their_onset():
    series = {
        "lower a": [10.0] * 80 + [150.0] * 40,
        "gradient_norm": [*wave(40, 1.0, 0.2), *([60.0] * 6), *wave(74, 1.0, 0.2)],
    }
    assert [c.name for c in _diagnosis(series).causes] == ["GradientNormExplosion", "AttentionLogitGrowth"]
    late, early = series["lower a"], [*wave(78, 1.0, 0.2), *([30.0] * 6), *wave(36, 1.0, 0.2)]
    together = _diagnosis({"lower a": late, "gradient_norm": early})
    assert [c.name for c in together.causes] == ["AttentionLogitGrowth", "GradientNormExplosion"], "two steps are a tie"


def test_steps_that_are_too_large_are_named_with_the_learning_rate():
    series = {
        "lower a": [10.0] * 10 + [150.0] * 20,
        "update a": [0.3, *([0.01] * 29)],
        "learning_rate": [0.03] * 30,
    }
    causes = _diagnosis(series).causes
    assert [c.name for c in causes] == ["AttentionLogitGrowth", "LearningRateTooHigh"]
    assert any("30%" in line for line in causes[1].evidence) and any("0.03" in line for line in causes[1].evidence)
    small = {**series, "update a": [0.01] * 30}
    assert [c.name for c in _diagnosis(small).causes] == ["AttentionLogitGrowth"]


def test_a_layer_that_began_at_zero_is_no_learning_rate_too_high():
    """The first update of a zero-initialised layer is as large as the layer itself, at any learning rate."""
    series = {
        "lower a": [10.0] * 10 + [150.0] * 20,
        "update zero": [math.inf, 1.0, 0.5, *([0.01] * 27)],
        "update a": [0.01] * 30,
        "update b": [0.01] * 30,
    }
    assert [c.name for c in _diagnosis(series).causes] == ["AttentionLogitGrowth"]


def test_a_loss_that_jumps_is_put_down_to_the_batch_but_not_while_the_learning_rate_climbs():
    losses = [*wave(100, 2.0, 0.02), *wave(20, 6.0, 0.02)]
    steady, climbing = [1e-3] * 120, [1e-4 * 1.03**i for i in range(120)]
    assert _diagnosis({"loss": losses, "learning_rate": steady}).causes[0].name == "BadBatch"
    found = _diagnosis({"loss": losses, "learning_rate": climbing, "update a": [0.01] * 120})
    causes = [c.name for c in found.causes]
    assert causes[0] == "LearningRateTooHigh" and "BadBatch" in causes
    assert "Likely cause: Learning rate too high." in found.verdict, "what the verdict tells first is its effect"


def test_no_batch_is_bad_where_all_are_one():
    losses = [*wave(100, 2.0, 0.02), *wave(20, 6.0, 0.02)]
    for again, found in ((0.0, True), (1.0, False)):
        causes = _diagnosis({"loss": losses, "learning_rate": [1e-3] * 120, "repeated": [again] * 120}).causes
        assert ("BadBatch" in {c.name for c in causes}) is found


def test_a_loss_that_rises_on_and_on_is_put_down_to_no_batch():
    losses = [*wave(100, 2.0, 0.02), *(2.0 * 1.02**i for i in range(100))]
    found = _diagnosis({"loss": losses, "learning_rate": [1e-3] * 200})
    assert {"LossDivergence", "LossShift"} & {c.name for c in found.causes}
    assert "BadBatch" not in {c.name for c in found.causes} and "the batch explains" not in str(found.to_dict())


def test_odd_batches_after_the_onset_and_without_a_jump_are_no_error():
    """Batches unlike the others are a reason to look for a jump of the loss; there need not be one."""
    engine = Engine()
    engine.observe(block({"loss": wave(50)}))

    def alert(rule, onset):
        odd = {"loss_odd_batches": 8.0}
        return Alert(rule, "warning", "firing", "loss", "", onset + 8, onset, 0.0, 1.0, None, rule, rule, odd)

    evidence = Evidence([alert("VanishingGradients", 0), alert("OddBatches", 40)], [], engine.memory, 0, 1.0, True)
    assert [root.name for root in ROOT_CAUSES if root.name == "BadBatch" and root.find(evidence)] == []


def test_a_cause_that_cannot_be_looked_for_takes_no_other_away(monkeypatch, caplog):
    def fails(evidence):
        raise ZeroDivisionError

    broken = RootCause("Broken", "Broken", fails, (), ())
    monkeypatch.setattr(diagnosis, "ROOT_CAUSES", (broken, *ROOT_CAUSES))
    causes = _diagnosis({"loss": [*wave(100, 2.0, 0.02), *wave(20, 6.0, 0.02)]}).causes
    assert causes and "the cause Broken could not be looked for" in caplog.text


def test_the_same_spike_of_the_learning_rate_is_named_again_after_the_run_went_back():
    rates, losses = [0.05] * 60 + [5.0] * 10, [*wave(60, 2.0, 0.02), *([9.0] * 10)]
    engine = Engine()
    engine.observe(block({"loss": losses, "learning_rate": rates}))
    engine.observe(block({"loss": losses, "learning_rate": rates}, first=10))
    assert [j.step for j in engine.memory.rate_jumps] == [60, 70]
    assert diagnose(engine).causes[0].name == "LearningRateSpike"


def test_a_warm_up_that_begins_again_is_no_jump():
    engine = Engine()
    engine.observe(block({"learning_rate": [1e-3] * 60}))
    engine.observe(block({"learning_rate": [1e-7, 1e-5, 4e-5, *([1e-4] * 20)]}, first=30))
    assert not engine.memory.rate_jumps


def test_large_updates_after_the_onset_are_not_its_cause():
    series = {"lower a": [10.0] * 10 + [150.0] * 20, "update a": [0.01] * 20 + [0.5] * 10}
    assert [c.name for c in _diagnosis(series).causes] == ["AttentionLogitGrowth", "UpdateTooLarge"]


def test_information_is_said_but_is_no_cause():
    found = _diagnosis({"loss": wave(50), "lower a": [150.0] * 50})
    assert found.verdict == (
        "Nothing left its normal range up to step 49. Attention logits are large, and were large in the first record."
    )
    assert found.causes == ()


def test_a_process_that_stopped_comes_after_what_led_to_it():
    engine = Engine()
    engine.observe(block({"loss": wave(50), "lower a": [10.0] * 30 + [150.0] * 20}))
    engine.observe_event(Event("end", 1050.0, 49, {"reason": "killed"}))
    assert [c.name for c in diagnose(engine).causes] == ["AttentionLogitGrowth", "TrainingStopped"]


def test_a_spike_that_is_over_is_said_to_be_over():
    found = _diagnosis({"loss": [*wave(100), *([6.0] * 5), *wave(30)]})
    assert found.verdict == "The loss has spiked, since step 100. It has returned to normal since."


def test_a_loss_that_stays_where_it_spiked_to_is_not_said_to_be_back():
    """The spike is over when its level is the usual one; that the progress is lost is not."""
    rate = [1e-3] * 100 + [0.3] * 100
    course = wave(100, 1.4, 0.03)
    above = [5e3 + 2e5 * math.exp(-i / 25) for i in range(100)]
    engine = Engine()
    engine.observe(block({"loss": [*course, *above], "learning_rate": rate}))
    assert "LossSpike" not in {a.rule for a in engine.active}
    (jump,) = (a for a in engine.active if a.rule == "LossLostAtRateJump")
    assert "100% of its progress is lost" in jump.description
    assert "The loss has spiked" in diagnose(engine).verdict
    assert "returned to normal" not in diagnose(engine).verdict


def test_gradients_at_the_end_of_float16_are_underflow_and_zeros_elsewhere_are_not():
    """Dead units leave gradients of a usual size beside their zeros."""
    zeros = {"zeros a": [*wave(60, 0.1, 0.1), *([0.95] * 20)]}
    tiny = {"exponents a": [0.6] * 80, "flow a": [1e-6] * 80}
    causes = [c.name for c in _diagnosis(zeros | tiny).causes]
    assert causes[0] == "MixedPrecisionUnderflow" and {"GradientUnderflow", "ZeroGradients"} <= set(causes)
    large = {"exponents a": [0.6] * 80, "flow a": [1e-2] * 80}
    assert [c.name for c in _diagnosis(zeros | large).causes] == ["ZeroGradients"]


def test_a_loss_scale_that_collapses_is_underflow():
    scale = [65536.0] * 50 + [2.0 ** (16 - i) for i in range(1, 20)]
    cause = _diagnosis({"loss_scale": scale}).causes[0]
    assert cause.name == "MixedPrecisionUnderflow" and any("loss scale was" in line for line in cause.evidence)


def test_exploding_gradients_of_a_recurrent_network_name_its_matrix():
    norms = [*wave(60, 1.0, 0.2), *([60.0] * 6)]
    spectrum = [1.0 + 0.01 * i for i in range(66)]
    cause = _diagnosis({"gradient_norm": norms, "spectrum cell.weight_hh_l0": spectrum}).causes[0]
    assert cause.name == "ExplodingRecurrentGradients" and cause.layers == ("cell",)
    other = _diagnosis({"gradient_norm": norms, "spectrum cell.weight_ih_l0": spectrum}).causes
    assert [c.name for c in other] == ["GradientNormExplosion"]


def test_a_recurrent_layer_that_overflows_after_an_enormous_first_gradient_is_put_down_to_it():
    def cause(norm, layer="cell"):
        engine = Engine()
        series = {
            "loss": [0.5],
            "gradient_norm": [norm],
            f"update {layer}": [1.5],
            "spectrum cell.weight_hh_l0": [None],
        }
        engine.observe(block({**series, "learning_rate": [0.01]}))
        data = {"place": "forward", "layers": [layer], "loss": "nan", "since": 1, "grown": True}
        engine.observe_event(Event("nonfinite", 1001.5, 1, data))
        return diagnose(engine).causes[0]

    found = cause(1084.0)
    assert (found.name, found.layers, found.since_step) == ("ExplodingRecurrentGradients", ("cell",), 1)
    assert "first gradient norm of the run was 1084" in found.evidence[0]
    assert cause(3.0).name == cause(1084.0, "head").name == "LearningRateTooHigh"
