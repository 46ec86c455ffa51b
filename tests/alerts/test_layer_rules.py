"""The rules over several signals: each fires, stays silent, survives NaN and gaps, recovers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stabwatch.alerts import Engine, diagnose
from stabwatch.alerts.root_causes import ROOT_CAUSES
from stabwatch.runlog import Event
from tests.alerts.scenarios import Scenario, around, block, uneven, wave


def _around_two(step):
    return 2.0 + 0.2 * (step % 3)


SCENARIOS = {
    "LossShift": Scenario("loss", wave(100, 2.0, 0.08), [3.2] * 12),
    "LossRisesWithRate": Scenario(
        "loss",
        [max(3.0, 8 - 0.2 * i) for i in range(100)],
        [5.2] * 60,
        {"learning_rate": lambda step: 1e-3 * 1.02**step},
    ),
    "OddBatches": Scenario(
        "loss", wave(100, 2.0), [6.0] * 8 + [2.0] * 6, {"shift": lambda step: 90.0 if 100 <= step < 110 else 1.0}
    ),
    "InputsGrow": Scenario("input", wave(100, 1.0, 0.1), [2.7**i for i in range(2, 12)]),
    "UpdateTooLarge": Scenario("update a", wave(100, 0.003, 0.1), [0.3] * 8),
    "UpdatesGrowAtFirst": Scenario(
        "update a", wave(100, 0.003, 0.1), [0.01, 0.02, 0.1, 0.4, 0.3, 0.2], from_start=True
    ),
    "WeightsChangedOutsideStep": Scenario("weight a", wave(100, 1.0, 0.0005), [1.2], {"update a": 0.01}),
    "VanishingGradients": Scenario("flow a", wave(100, 1e-3, 0.1), [1e-7] * 24, {"loss": 3.0}),
    "VanishingOverDepth": Scenario(
        "flow a",
        wave(100, 1e-3, 0.1),
        [1e-8] * 60,
        {"loss": 3.0, **{f"flow {x}": 1e-8 for x in "bc"}, **{f"flow {x}": 1e-3 for x in "defghi"}},
    ),
    "TokenCollapse": Scenario("tokens a", wave(100, 0.3, 0.1), [0.995] * 20),
    "AdamStepTooLarge": Scenario("adam a", wave(100, 0.3, 0.1), [3.0]),
    "AdamEpsilonTooLarge": Scenario("epsilon a", wave(100, 0.1, 0.1), [0.95] * 12),
    "SoftmaxCollapse": Scenario("collapse", wave(100, 0.1, 0.1), [0.95] * 20),
    "RouterCollapse": Scenario("router a", wave(100, 0.5, 0.1), [3.0] * 80),
    "DeadUnits": Scenario("dead a", wave(100, 0.2, 0.1), [0.9] * 6),
    "ReplicasDiffer": Scenario("replica a", [0.0] * 100, [1e-3] * 3),
    "SlowRank": Scenario("busy", wave(100, 0.12, 0.1), [0.7] * 20, {"step_seconds": 1.0}),
    "SlowHost": Scenario("busy_host", wave(100, 0.12, 0.1), [0.7, 0.71] * 24, {"step_seconds": 1.0}),
    "RankLossLower": Scenario("loss_of_others", wave(100, 2.2, 0.01), [4.0] * 20, {"lowest_rank": 1.0}),
    "RanksReadAlike": Scenario(
        "ranks_alike", [0.0] * 100, [1.0] * 24, {"loss_of_all": lambda step: 2.0 + 0.1 * (step * 7 % 11)}
    ),
    "RankLossHigher": Scenario("rank_loss", wave(100, 2.2, 0.01), [4.0] * 20),
    "LossScaleCollapse": Scenario("loss_scale", [65536.0] * 100, [2.0 ** (16 - i) for i in range(1, 20)]),
    "StepsSkipped": Scenario("skipped", [1.0, 1.0, *([0.0] * 98)], [1.0] * 24),
    "GradientUnderflow": Scenario("zeros a", wave(100, 0.1, 0.1), [0.45] * 12, {"exponents a": 0.9, "flow a": 1e-6}),
    "ZeroGradients": Scenario("zeros a", wave(100, 0.1, 0.1), [0.95] * 5),
    "SaturatedFromStart": Scenario("saturated a", wave(100, 0.1, 0.1), [0.95] * 3, from_start=True),
    "SaturatedUnits": Scenario("saturated a", wave(100, 0.1, 0.1), [0.95] * 5),
    "AttentionEntropyCollapse": Scenario("entropy a", wave(100, 2.5, 0.1), [0.01] * 12),
    "ResidualStreamGrowth": Scenario("growth blocks", wave(100, 0.05, 0.1), [3.0] * 5),
    "GradientGrowthOverDepth": Scenario("backward blocks", wave(100, 0.05, 0.1), [3.0] * 5),
    "LoopGrowth": Scenario("loop core", wave(100, 16.0, 0.1), [800.0] * 5),
    "RepresentationDrift": Scenario("drift a", wave(100, 0.25, 0.05), [0.9] * 4),
    "ExpertTokensDropped": Scenario("dropped a", wave(100, 0.05, 0.1), [0.5] * 70),
    "CodebookCollapse": Scenario("codes a", wave(100, 0.1, 0.1), [0.6] * 120),
    "PartWithoutGradient": Scenario("missing a", [0.0] * 100, [1.0] * 24),
    "PartLostGradient": Scenario("parted a", [0.0] * 100, [1.0] * 60, {"activation a": 1.0}),
    "ParametersNotInOptimizer": Scenario("unheld a", [0.0] * 100, [1.0] * 24),
    "FrozenInOptimizer": Scenario("refrozen", [0.0] * 100, [1.0] * 24),
    "ParametersNotRegistered": Scenario("unregistered a", [0.0] * 100, [1.0] * 24),
    "GradientsAccumulate": Scenario("kept", [0.0] * 100, [1.0] * 5),
    "EvalModeInTraining": Scenario("evaluating", [0.0] * 100, [1.0] * 5),
    "ValidatedInTrainingMode": Scenario("validated", [0.0] * 100, ([1.0] + [0.0] * 9) * 4),
    "DropoutInEvaluation": Scenario("dropping", [0.0] * 100, [1.0] * 5),
    "OptimizerStateLost": Scenario("resets", [0.0] * 100, [1.0]),
    "LearningRateZero": Scenario("learning_rate", [1e-3] * 100, [1e-9] * 40),
    "LearningRateNegative": Scenario("learning_rate", [1e-3] * 100, [-1e-5]),
    "NoUpdates": Scenario("update a", wave(100, 0.003, 0.1), [0.0] * 5),
    "WeightsDecayAway": Scenario("weight a", wave(100, 1.0, 0.01), [0.02] * 4),
    "UpdatesLost": Scenario("lost a", wave(100, 0.2, 0.1), [0.9] * 5),
    "ClipOnScaledGradients": Scenario(
        "clip_limit", [1.0] * 100, [2048.0] * 5, {"flow a": 1.0, "gradient_norm": 5000.0, "loss_scale": 2048.0}
    ),
    "LossWithoutBound": Scenario("loss", wave(100, 2.0), [-2.0 * 1.1**i for i in range(80)]),
    "TargetsNotScaled": Scenario("target_size", wave(100, 1.0, 0.1), [500.0] * 80, {"target_rms": 5000.0}),
    "TargetsConstant": Scenario(
        "one_label", wave(100, 0.3, 0.05), [0.0] * 80, {"token_loss": lambda step: 1.0 if step < 100 else 1e-3}
    ),
    "InitialOutputsTooLarge": Scenario("target_size", [1.0] * 100, [0.02] * 4, {"target_rms": 0.3}, from_start=True),
    "OutputsConstant": Scenario("spread", wave(100, 0.8, 0.05), [1e-3] * 200),
    "UpdatesTooSmall": Scenario("update a", wave(100, 0.003, 0.1), [1e-7] * 120, {"loss": 2.3}, from_start=True),
    "LayerStandsStill": Scenario(
        "update a",
        wave(100, 0.003, 0.1),
        [1e-9] * 100,
        {"update b": 0.003, "flow a": 1e-3, "flow b": 1e-3},
        from_start=True,
    ),
    "PartWithZeroGradient": Scenario("flow a", wave(100, 1e-3, 0.1), [0.0] * 60, {"flow b": 1e-3}, from_start=True),
    "PartGradientBecameZero": Scenario(
        "flow a", wave(100, 1e-3, 0.1), [0.0] * 80, {"flow b": 1e-3, "activation a": 1.0}
    ),
    "EmbeddingCollapse": Scenario("wanted", wave(100, 1.0, 0.1), [0.01] * 80),
    "UpdatesZero": Scenario("unchanged", [0.0] * 100, [1.0] * 5),
    "GradientsThrownAway": Scenario("thrown", [0.0] * 100, [1.0] * 5),
    "WeightDecayTooLarge": Scenario("decay", [1e-4] * 100, [0.03] * 40),
    "UnitsAlike": Scenario("units", [0.0] * 100, [1.0] * 3, from_start=True),
    "LogitsScrambled": Scenario("scrambled", [0.0] * 100, [1.0] * 4),
    "NoNonlinearity": Scenario("linear", [0.0] * 100, [3.0] * 4, from_start=True),
    "OutputLayerUntrained": Scenario("untrained", [0.0] * 100, [1.0] * 4, from_start=True),
    "DerivativeZero": Scenario("derivative", [0.0] * 100, [1.0] * 25),
    "OverlapOfLogits": Scenario("overlap", [0.0] * 100, [1.0] * 4),
    "ClassWeightsInverted": Scenario("class_weight", wave(100, 0.9, 0.2), [2.5] * 9),
    "SamplesMixed": Scenario("mixed", [0.0] * 100, [1.0] * 4),
    "TargetsOutOfReach": Scenario("unreachable", [0.0] * 100, [0.5] * 5),
    "ClipAfterStep": Scenario("clip_late", [0.0] * 100, [1.0] * 5),
    "GradientsNotUnscaled": Scenario("scaled_step", [0.0] * 100, [1.0] * 5),
    "LossTermNotScaled": Scenario("bare_terms", [0.0] * 100, [1.0] * 5),
    "SmallBatches": Scenario(
        "loss",
        wave(300, 0.5),
        ([0.5] * 20 + [1.5]) * 6,
        {"speed": lambda step: 2.0 if step >= 300 and step % 21 == 5 else 32.0, "step_seconds": 1.0},
    ),
    "RandomNumbersRepeat": Scenario("redrawn", [0.0] * 100, [1.0] * 6),
    "LoaderRestarted": Scenario("restarted", [0.0] * 100, [1.0] * 20),
    "DoubleSoftmax": Scenario("probability", [0.0] * 100, [1.0] * 4),
    "ReluOnLogits": Scenario("cut", [0.0] * 100, [1.0] * 4),
    "LossBroadcast": Scenario("broadcast", [1.0] * 100, [32.0] * 4),
    "TargetOutOfRange": Scenario("out_of_range", [0.0] * 100, [0.4] * 4),
    "DoubleSigmoid": Scenario("binary", wave(100, 0.5, 0.2), [1.0] * 70),
    "NotLogProbabilities": Scenario("off", [0.0] * 100, [0.9] * 3),
    "InputsConstant": Scenario("alike", [0.1] * 100, [1.0] * 5, from_start=True),
    "TargetsIgnored": Scenario("ignored", wave(100, 0.7, 0.05), [1.0] * 5),
    "LoneLosses": Scenario(
        "loss",
        [max(0.1, 2.5 - 0.05 * i) for i in range(300)],
        [0.1] * 10 + ([4.0] + [0.1] * 19) * 5,
        {"speed": 32.0, "step_seconds": 1.0},
    ),
    "DataNotShuffled": Scenario("label_mean", wave(100, 0.5, 0.02), [i // 5 % 10 / 10 for i in range(60)]),
    "InitialLossTooHigh": Scenario("token_loss", [3.0] * 100, [30.0], {"ten_classes": 1.0, "cut": 0.0}),
    "NotLearning": Scenario("token_loss", [1.0] * 100, [2.302] * 240, {"ten_classes": 1.0}),
    "LossConstant": Scenario("loss", wave(100, 2.3, 0.01), [0.693147] * 120, from_start=True),
    "LossStuck": Scenario("loss", wave(100, 0.5, 0.2), [0.0125] * 20),
    "LossLostAtRateJump": Scenario(
        "loss",
        [max(0.1, 2.5 - 0.05 * i) for i in range(100)],
        [2.4] * 12,
        {"learning_rate": lambda step: 1e-3 if step < 100 else 0.1},
    ),
    "EntropyCollapse": Scenario("logged actor/entropy", wave(100, 1.2), [0.02] * 60, {"logged reward": uneven}),
    "EntropyExplosion": Scenario(
        "logged train/entropy_loss", wave(100, -0.4), [-2.5] * 10, {"logged train/clip_fraction": 0.1}
    ),
    "RewardCollapse": Scenario("logged rollout/ep_rew_mean", [i / 100 for i in range(100)], [0.02] * 40),
    "AccuracyCollapse": Scenario("logged train_acc", [i / 100 for i in range(100)], [0.1] * 40),
    "ScoreCollapse": Scenario("logged val/mIoU", [i / 100 for i in range(100)], [0.02] * 40),
    "DeadGroups": Scenario("logged frac_reward_zero_std", wave(100, 0.3), [1.0] * 16, {"logged reward": uneven}),
    "TruncationSurge": Scenario("logged completions/clipped_ratio", wave(100, 0.05), [0.8] * 16),
    "KLRunaway": Scenario("logged objective/kl", wave(100, 0.1), [5.0] * 6, {"logged reward": uneven}),
    "NegativeDivergence": Scenario("logged kl", wave(100, 0.1), [-0.2] * 20, {"logged reward": uneven}),
    "ImportanceRatioExtreme": Scenario("logged policy/clipfrac_avg", wave(100, 0.1), [0.9] * 5),
    "RolloutMismatch": Scenario("logged sampling/sampling_logp_difference/mean", wave(100, 0.01), [0.6] * 5),
    "AdvantageOutlier": Scenario("logged critic/advantages/max", wave(100, 2.5), [400.0]),
    "TargetsShiftedTwice": Scenario("second_token", [0.1] * 100, [1.0] * 4),
    "TargetsNotShifted": Scenario("own_token", [0.1] * 100, [1.0] * 4),
    "EndNeverTaught": Scenario("text_end", [1.0] * 100, [0.0] * 8, {"common_token": 0.2}),
    "TargetsNotHidden": Scenario("seen_token", [0.1] * 100, [0.85] * 5),
    "TargetsMostlyOne": Scenario("common_token", wave(100, 0.2, 0.1), [0.9] * 5),
    "CausalMaskMissing": Scenario("open_token", [0.0] * 100, [1.0] * 4),
    "RepeatedBatches": Scenario(
        "repeated", [0.0] * 100, [float(i % 4 > 0) for i in range(100)], {"loss": _around_two, "compared": _around_two}
    ),
    "NoBetterThanMean": Scenario(
        "fit", wave(100, 0.5, 0.05), [1.0] * 240, {"loss": _around_two, "compared": _around_two}
    ),
    "WeightsReplaced": Scenario(
        "by_program",
        [0.0] * 100,
        [1.0, 0.0, 0.0],
        {"loss": lambda step: max(1.0, 3 - 0.03 * step) if step < 100 else 2.8},
    ),
    "Overfitting": Scenario(
        "logged val_loss",
        [max(1.0, 3 - 0.06 * i) for i in range(100)],
        [1.6] * 24,
        {"loss": lambda step: 3 * 0.97**step},
    ),
    "EvaluationApart": Scenario(
        "logged val_loss",
        [0.5] * 100,
        [12 - 0.02 * i for i in range(100)],
        {"loss": lambda step: max(0.4, 3 * 0.98**step)},
        from_start=True,
    ),
    "DiscriminatorCollapse": Scenario("loss", wave(100, 1.3, 0.1), [0.005] * 100, {"opposed": 1.0, "binary": 0.0}),
    "SamplesOnOtherScale": Scenario("span", wave(100, 3.0, 1.0), [120.0] * 90, {"opposed": 1.0}),
    "TargetsRunAway": Scenario(
        "target_rms",
        wave(100, 1.0, 0.05),
        [1.02**i for i in range(300)],
        {"target_size": 1.0, "shift": 1.0},
    ),
    "TargetInInput": Scenario("leak", wave(100, 0.1, 0.1), [1.0] * 4),
    "AccumulationNotAveraged": Scenario("loss", [2.3] * 100, [36.8] * 6, {"token_loss": 2.3, "passes": 16.0}),
    "CrossEntropyMaximised": Scenario(
        "token_loss",
        [2.3] * 100,
        [4.0] * 6,
        {"loss": lambda i: -4.0 if 100 <= i < 112 else 2.3, "passes": 1.0, "ten_classes": 1.0},
    ),
    "StepBeyondRadius": Scenario("radius", wave(100, 0.05, 0.1), [0.8] * 5),
}


def _after(rule, *parts):
    engine, scenario, first = Engine(), SCENARIOS[rule], 0
    for part in parts:
        piece = block({scenario.series: part, **around(scenario.beside, first, len(part))}, first)
        engine.observe(piece)
        first += len(piece)
    return engine


def _states_of(series, rule):
    engine = Engine()
    engine.observe(block(series))
    return _states(engine, rule)


def _states(engine, rule):
    return [a.state for a in engine.history if a.rule == rule and a.severity != "info"]


@pytest.mark.parametrize("rule", SCENARIOS)
def test_it_stays_silent_on_a_healthy_curve_and_fires_on_a_bad_one(rule):
    scenario = SCENARIOS[rule]
    assert _after(rule, scenario.calm).history == ()
    engine = _after(rule, *scenario.broken)
    fired = [a for a in engine.history if a.rule == rule]
    assert fired and all(sum(map(len, scenario.broken[:-1])) <= a.onset <= a.step for a in fired)
    assert fired[-1].description and "nan" not in fired[-1].description


@pytest.mark.parametrize("rule", SCENARIOS)
def test_nan_and_gaps_neither_silence_nor_resolve_it(rule):
    scenario = SCENARIOS[rule]
    gaps = _after(rule, *scenario.broken, [None] * 200)
    assert any(a.rule == rule for a in gaps.active)
    odd = _after(rule, *scenario.broken, [math.nan] * 30)
    assert any(a.rule == rule for a in odd.active)
    between = [x for value in scenario.bad for x in (math.nan, value)]
    assert _states(_after(rule, *scenario.broken[:-1], between), rule) == ["firing"]


@pytest.mark.parametrize("rule", SCENARIOS)
def test_it_recovers(rule):
    scenario = SCENARIOS[rule]
    engine = _after(rule, *scenario.broken, scenario.calm)
    assert not any(a.rule == rule for a in engine.active)


@pytest.mark.parametrize(
    ("repeated", "beside"),
    [
        ([1.0] * 200, {}),
        ([float(i % 10 == 0) for i in range(200)], {}),
        (
            [float(i % 4 > 0) for i in range(200)],
            {"acted": lambda step: float(step % 4 == 0), "loss": _around_two, "compared": _around_two},
        ),
        (
            [float(i % 4 > 0) for i in range(200)],
            {"loss": _around_two, "compared": lambda step: 0.3 + 0.1 * (step % 3)},
        ),
    ],
    ids=[
        "whole data set",
        "a last batch that is short",
        "four epochs over what a policy has seen",
        "four epochs over what a copy of the policy has seen",
    ],
)
def test_batches_that_are_meant_to_come_again_are_no_repeated_batches(repeated, beside):
    assert not _states_of({"repeated": repeated, **around(beside, 0, 200)}, "RepeatedBatches")


@pytest.mark.parametrize(("length", "each", "told"), [(5, 1, True), (5, 8, True), (120, 8, False), (120, 16, False)])
def test_another_task_is_no_order_of_the_labels(length, each, told):
    labels = [(3 * (i // length) % 10) / 10 if i % each == 0 else None for i in range(600)]
    assert bool(_states_of({"label_mean": labels}, "DataNotShuffled")) == told


@pytest.mark.parametrize(
    ("deviation", "beside", "told"),
    [(0.05, {}, True), (1.0, {}, False), (0.05, {"acted": 1.0}, False), (0.05, {"opposed": 1.0}, False)],
    ids=["sorted", "shuffled", "the model makes its data", "a game"],
)
@pytest.mark.parametrize("course", [lambda i: math.sin(3.0 * i), lambda i: i / 5])
def test_numbers_in_their_order_are_not_shuffled(deviation, beside, told, course):
    means = [course(i) for i in range(100)]
    told = told and means[99] < 2  # what rises steadily is no order
    series = {"number_mean": means, **around({"number_deviation": deviation, **beside}, 0, 100)}
    assert bool(_states_of(series, "DataNotShuffled")) == told


@pytest.mark.parametrize(
    ("validation", "told"),
    [
        (lambda step: 2.3 + 0.02 * step, True),
        (lambda step: 2.0, True),
        (lambda step: max(0.9, 2.3 - 0.05 * step) + 0.005 * step, False),
        (lambda step: 0.35, False),
        (lambda step: 60.0 * 0.97**step, False),
    ],
    ids=["another order of classes", "learns nothing", "learns, then overfits", "good from the first on", "a sum"],
)
def test_a_validation_that_never_learns_is_apart_and_no_overfitting(validation, told):
    values = [validation(step) if step % 5 == 4 else None for step in range(200)]
    states = _states_of(
        {"logged val_loss": values, "loss": [2.3 * 0.97**step for step in range(200)]}, "EvaluationApart"
    )
    assert bool(states) == told


@pytest.mark.parametrize(
    ("size", "beside"),
    [
        (lambda step: 2.7 ** (step // 20), {"acted": 1.0}),
        (lambda step: 100.0 if step % 3 else 0.5, {}),
        (lambda step: 20.0 if step > 60 else 0.5, {}),
    ],
    ids=["what a model sees as it acts", "noise of many levels", "features of usual size"],
)
def test_inputs_that_come_and_go_do_not_grow(size, beside):
    sizes = [size(step) for step in range(200)]
    assert not _states_of({"input": sizes, **around(beside, 0, 200)}, "InputsGrow")


def test_batches_whose_targets_are_alike_do_not_say_that_nothing_is_learned():
    error = {"fit": [1.5] * 300, "loss": [0.1] * 300, "compared": [0.1] * 300}
    assert _states_of(error, "NoBetterThanMean") == ["firing"]
    levels = {"number_mean": [math.sin(3.0 * i) for i in range(300)], "number_deviation": [0.05] * 300}
    assert not _states_of(error | levels, "NoBetterThanMean")


@pytest.mark.parametrize("acts", [False, True])
def test_a_model_that_acts_in_other_steps_than_those_that_are_looked_at_makes_its_data(acts):
    seen: list[float | None] = [1.5 if i % 16 == 0 else None for i in range(300)]
    acted: list[float | None] = [float(acts and i % 16 > 0) for i in range(300)]
    series = {"fit": seen, "loss": [0.1] * 300, "compared": [0.1] * 300, "acted": acted}
    assert bool(_states_of(series, "NoBetterThanMean")) != acts


@pytest.mark.parametrize(
    ("lone", "beside", "told"),
    [
        (4.0, {"speed": 32.0}, True),
        (0.6, {"speed": 32.0}, False),
        (4.0, {"speed": 2.0}, False),
        (4.0, {"speed": 32.0, "acted": 1.0}, False),
    ],
    ids=["a batch that is wrong", "a sample that is wrong", "few samples", "a policy"],
)
def test_lone_losses_are_those_of_batches_that_are_wrong(lone, beside, told):
    loss = [*wave(20, 2.0), *([0.1] * 15 + [lone] + [0.1] * 14) * 5]
    series = {"loss": loss, **around({"step_seconds": 1.0, **beside}, 0, len(loss))}
    assert bool(_states_of(series, "LoneLosses")) == told


@pytest.mark.parametrize(("largest", "told"), [(0.5 / 2048, True), (0.4 / 2048, False), (0.5, False)])
def test_values_that_are_clipped_before_they_are_unscaled(largest, told):
    series = around({"clip_value": 0.5, "loss_scale": 2048.0, "flow a": largest}, 0, 60)
    assert bool(_states_of(series, "ClipOnScaledGradients")) == told


@pytest.mark.parametrize(
    ("sizes", "told"),
    [([1.0] * 100 + [1.02**i for i in range(300)], True), ([1.0] * 100 + [1000.0] * 300, False)],
    ids=["they run away", "they jump"],
)
def test_targets_that_the_outputs_do_not_follow_any_more_run_away(sizes, told):
    ratios = [1.0] * 100 + [10.0] * 300
    series = {"target_rms": sizes, "target_size": ratios, "shift": [1.0] * 400}
    assert bool(_states_of(series, "TargetsRunAway")) == told


@pytest.mark.parametrize("rate", [lambda step: 1e-3, lambda step: 1e-3 * (2 if 40 < step < 60 or step > 100 else 1)])
def test_a_loss_that_rises_at_a_rate_it_has_known_is_not_put_down_to_it(rate):
    scenario = SCENARIOS["LossRisesWithRate"]
    loss = [*scenario.calm, *scenario.bad]
    engine = Engine()
    engine.observe(block({"loss": loss, **around({"learning_rate": rate}, 0, len(loss))}))
    assert not _states(engine, "LossRisesWithRate")


def test_a_rate_that_comes_back_to_where_it_was_is_no_jump():
    ratio = [0.05] * 30 + [0.001] * 60 + [0.05] * 30
    assert Engine().observe(block({"update a": ratio})) == []


def test_weights_that_nobody_measures_the_steps_of_are_not_judged():
    """A layer that another optimizer moves."""
    assert Engine().observe(block({"weight a": [1.0] * 10 + [2.0] * 10})) == []


def test_weights_may_change_by_as_much_as_the_steps_in_a_gap():
    series = {"weight a": [1.0, *([None] * 99), 1.5], "update a": [0.01, *([None] * 99), 0.01]}
    assert Engine().observe(block(series)) == []


def test_gradients_that_fade_with_the_loss_have_done_their_work():
    loss = [3.0 * 0.9**i for i in range(150)]
    assert Engine().observe(block({"flow a": [1e-3 * 0.9**i for i in range(150)], "loss": loss})) == []


def test_every_root_cause_has_a_name_of_its_own():
    assert len({cause.name for cause in ROOT_CAUSES}) == len(ROOT_CAUSES)


def _weights(norms, written, each):
    """Rules that fired, with their steps, on weight norms and on what the program wrote between the steps."""
    engine = Engine()
    for first in range(0, len(norms), each):
        part = slice(first, first + each)
        engine.observe(
            block({"weight a": norms[part], "update a": [0.001] * len(norms[part]), "written": written[part]}, first)
        )
    return [(a.rule, a.step) for a in engine.history if a.state == "firing"]


@pytest.mark.parametrize("each", [1, 64])
def test_weights_that_the_program_writes_at_each_step_are_no_fault(each):
    clipped = [0.8, 0.3, *wave(62, 0.3, 0.0005)]
    assert _weights(clipped, [None, *([0.01] * 63)], each) == []
    assert _weights(wave(10, 0.3, 0.0005) + [0.24, 0.3] * 20, [0.01] * 50, each) == []


@pytest.mark.parametrize("each", [1, 64])
def test_a_lone_change_and_a_bit_that_flips_are_told(each):
    lone = [1.0] * 20 + [1.3] * 20
    rule = "WeightsChangedOutsideStep"
    assert _weights(lone, [0.0] * 40, each) == [(rule, 20)], "the numbers that are looked at are the same: a bit"
    assert _weights(lone, [0.0] * 20 + [0.4] + [0.0] * 19, each) == [(rule, 21)], "all were written, once"
    assert _weights(lone, [None] * 40, each) == [(rule, 20)], "nothing is known of what was written"
    assert _weights([1.0] * 20 + [1e9] * 20, [0.01] * 40, each) == [(rule, 20)], "no clipping makes weights so large"


def test_weights_without_bound_are_no_change_from_outside():
    engine = Engine()
    norms, updates = [0.2, 0.2, 0.7, 5.0, np.inf], [0.07, 0.7, 20.0, 220.0, 220.0]
    engine.observe(block({"weight a": norms, "update a": updates}, 0))
    assert "WeightsChangedOutsideStep" not in {a.rule for a in engine.history}


@pytest.mark.parametrize("each", [1, 200])
def test_a_program_that_begins_anew_is_told_and_is_no_alarm(each):
    """The next fold: new weights and a new optimizer. Weights that go on without the optimizer's state are a fault."""
    fold = [0.1 + 0.7 * 0.93**step for step in range(100)]
    resets = [0.0] * 100 + [1.0] + [0.0] * 99
    for losses, wanted in (([*fold, *fold], "info"), ([*fold, 0.1, *([0.3] * 20), *([0.1] * 79)], "warning")):
        engine = Engine()
        for first in range(0, 200, each):
            part = slice(first, first + each)
            engine.observe(block({"loss": losses[part], "resets": resets[part]}, first))
        told = {(a.rule, a.severity) for a in engine.history if a.state == "firing"}
        assert ("OptimizerStateLost", wanted) in told
        assert (wanted == "info") == (engine.fresh_starts == (100,)) == ({s for _, s in told} == {"info"})


def test_one_batch_with_an_odd_sample_is_no_measure_of_how_far_samples_are_apart():
    apart = [*wave(40, 1.0, 0.1), 500.0, *wave(120, 1.0, 0.1)]
    assert _states_of({"wanted": apart}, "EmbeddingCollapse") == []


def test_weights_that_the_program_spoils_are_told_first_and_no_more_than_all_is_lost():
    engine, written = Engine(), [0.0] * 60 + [1.0] + [0.0] * 9
    losses = [max(1.0, 3 - 0.05 * step) for step in range(60)] + [1e9 / 8**step for step in range(10)]
    weights = [1.0] * 60 + [2.0] * 10
    series = {"loss": losses, "by_program": written, "weight a": weights, "update a": [0.001] * 70}
    engine.observe(block(series, 0))
    first = diagnose(engine).causes[0]
    assert first.name == "WeightsReplaced" and "and 100% of the progress" in first.evidence[0]
    assert first.since_step == 60, "at the write, and not where the losses after it are there"


def test_weights_that_take_the_place_of_others_are_no_change_from_outside():
    engine = Engine()
    engine.observe(block({"weight a": [1.0] * 20, "update a": [0.001] * 20}, 0))
    engine.observe_event(Event("change", 0.0, 20, {"what": "the model has changed: ...", "seen": True}))
    engine.observe(block({"weight a": [2.0] * 20 + [3.0], "update a": [0.001] * 21}, 20))
    fired = [(a.rule, a.step) for a in engine.history if a.rule == "WeightsChangedOutsideStep"]
    assert fired == [("WeightsChangedOutsideStep", 40)]


def test_a_loss_that_rose_above_a_guess_is_not_called_that_of_a_guess():
    engine = Engine()
    engine.observe(block({"token_loss": [2.302] + [1e5] * 240, "ten_classes": [1.0] * 241}, 0))
    (told,) = [a for a in engine.history if a.rule == "NotLearning"]
    assert "far above" in told.summary and "4.34e+04 times" in told.description
