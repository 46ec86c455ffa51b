"""What a person sees in an excerpt of a few records, and what only looks like it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stabwatch.analysis.detectors import detect
from stabwatch.analysis.readers.log import Remark
from tests.analysis.curves import run_of

LATE = range(2580, 2640, 10)


def _troubles(unit="step", steps=None, remarks=(), **columns):
    run = replace(run_of(steps=steps, remarks=remarks, **columns), step_unit=unit)
    return [(f.condition, f.first_step) for f in detect(run) if f.is_problem]


FALLING = [0.31, 0.30, 0.30, 0.29, 0.29, 0.29]


@pytest.mark.parametrize(
    ("columns", "unit", "steps", "found"),
    [
        ({"f1": [0.0] * 6, "precision": [0.0] * 6, "recall": [0.0] * 6}, "step", LATE, True),
        ({"eval_f1": [0.0] * 6}, "epoch", range(1, 7), True),
        ({"bbox_mAP": [0.0] * 6, "bbox_mAP_50": [0.0] * 6}, "step", range(100, 700, 100), True),
        ({"eval/BLEU": [0.0] * 6}, "epoch", range(1, 7), True),
        ({"f1": [0.0] * 6, "recall": [0.0] * 5 + [0.1]}, "epoch", range(1, 7), False),
        ({"f1": [0.0] * 6}, "step", range(10, 70, 10), False),  # the first batches
        ({"bbox_mAP": [0.0, 0.0, 0.0, 0.01, 0.1, 0.2]}, "epoch", range(1, 7), False),
        ({"mAP": [0.0] * 3 + [None] * 3}, "epoch", range(1, 7), False),
        ({"val_acc": [0.0] * 6}, "epoch", range(1, 7), False),  # of a regression: the loss is below ln 2
        ({"map_rate": [0.0] * 6, "laptime": [0.0] * 6}, "epoch", range(1, 7), False),
    ],
)
def test_scores_that_are_always_0(columns, unit, steps, found):
    others = {f"other__{name}": values for name, values in columns.items()}
    told = _troubles(unit, steps, loss=FALLING, **others)
    assert told == ([("NotLearning", steps[0])] if found else [])


@pytest.mark.parametrize(
    ("loss", "found"), [([1.49, 2.05, 1.37, 2.04, 1.54], True), ([48.0, 20.0, 9.0, 5.0, 4.0], False)]
)
def test_an_accuracy_that_is_always_0(loss, found):
    told = _troubles(steps=range(1800, 2300, 100), loss=loss, other__train_accuracy=[0.0] * 5)
    assert told == ([("NotLearning", 1800)] if found else [])


@pytest.mark.parametrize(
    ("loss", "unit", "found"),
    [
        ([2.302585, 2.302612, 2.302571, 2.302590, 2.302601, 2.302583, 2.302588], "step", True),
        ([2.3051, 2.3040, 2.3035, 2.3031], "epoch", True),
        ([2.3030, 2.3021, 2.3010, 2.2999, 2.2991, 2.2983], "step", False),  # begins to learn
        ([2.3030, 2.2960, 2.2700, 2.2100], "epoch", False),
        ([2.2980, 2.3060, 2.2970, 2.3050, 2.2990, 2.3040], "ordinal", False),
    ],
)
def test_a_loss_of_guessing_in_a_few_records(loss, unit, found):
    told = _troubles(unit, range(1, len(loss) + 1), loss=loss)
    assert told == ([("NotLearning", 1)] if found else [])
    ln2 = [0.6931, 0.6932, 0.6930, 0.6931, 0.6932, 0.6931]
    assert _troubles(loss=ln2, **{"other__rewards/margins": [1e-4] * 6}) == []


def test_a_loss_that_becomes_that_of_guessing():
    learns = [0.6773, 2.4587, 5.3353, 1.0234, 10.6901, 1.9899, 3.5713, 0.6869]
    assert _troubles(loss=[*learns, *[0.6931] * 12]) == [("NotLearning", 8)]
    assert _troubles(loss=[*learns[:4], *[0.6931, 0.6921] * 6]) == []


def test_noise_of_five_records_is_no_spike():
    assert _troubles(steps=range(1_851_300, 1_851_800, 100), loss=[0.183, 0.606, 0.571, 0.419, 0.069]) == []


def test_a_constant_loss_without_a_gradient():
    rates = [1e-5, 2e-5, 3e-5]
    assert _troubles(loss=[11.7] * 3, grad_norm=[0.0] * 3, learning_rate=rates) == [("NotLearning", 0)]
    assert _troubles(loss=[11.7, 11.2, 10.1], grad_norm=[0.0] * 3, learning_rate=rates) == []
    assert _troubles(loss=[11.7] * 3, grad_norm=[0.3] * 3, learning_rate=rates) == []


@pytest.mark.parametrize(
    ("norm", "onset"),
    [
        ([1.2, 14.5, 133.0, 1540.0, 16200.0], 1),
        ([0.9, 1.1, 0.8, 8.0, 90.0, 880.0], 3),
        ([0.001, 0.01, 0.1, 1.0], None),  # still small
        ([120.0, 14.5, 3.0, 1.1], None),
        ([1.0, 2.5, 6.0, 14.0, 30.0], None),
        ([500.0, 1.0, 10.0, 100.0, 1000.0], None),  # as large as before
    ],
)
def test_a_gradient_norm_that_climbs_to_the_end(norm, onset):
    told = _troubles(steps=range(100, 100 + len(norm)), loss=[2.0] * len(norm), grad_norm=norm)
    assert told == ([] if onset is None else [("GradientNormExplosion", 100 + onset)])


def test_a_loss_that_doubles_over_the_first_epochs():
    rises = [0.41, 0.69, 1.02, 1.71, 2.55]
    assert _troubles("epoch", loss=rises) == [("LossDivergence", 1)]
    assert _troubles("step", loss=rises) == []  # the hump without a warm-up
    assert _troubles("epoch", loss=[1.20, 1.21, 1.22, 1.24, 1.25]) == []


@pytest.mark.parametrize(
    ("name", "kl", "found"),
    [
        ("kl", [0.0004, 0.02, 2.2, 202.0, 23252.5], True),
        ("objective/kl", [0.2, 4.1, 35.0, 410.0, 2210.5], True),
        ("objective/kl", [0.02, 0.5, 2.1, 4.0, 6.0], False),  # a healthy target
        ("train/approx_kl", [0.001, 0.002, 0.004, 0.01, 0.02], False),
        ("kl", [0.0004, 0.02, 2.2, 0.9, 3.0], False),
        ("kl_coef", [0.0004, 0.02, 2.2, 202.0, 23252.5], False),
    ],
)
def test_a_divergence_that_runs_away(name, kl, found):
    told = _troubles(other__reward=[0.4, 0.41, 0.4, 0.3, 0.2], **{f"other__{name}": kl})
    assert told == ([("KLRunaway", 1)] if found else [])


def test_a_loss_of_rounding_with_empty_parts():
    tiny, parts = [-6.4e-20] * 3, {"component__loss_bbox": [0.0] * 3, "component__loss_coverage": [0.0] * 3}
    assert _troubles(steps=[6880, 6920, 6960], loss=tiny, **parts) == [("LossTooGood", 6880)]
    assert _troubles(steps=[6880, 6920, 6960], loss=tiny) == []


def test_a_scale_at_its_least():
    ends = Remark("overflow", None, 3, "Current loss scale already at minimum.")
    assert _troubles(loss=[3.0, 2.9], remarks=[ends]) == [("LossScaleCollapse", 0)]
    ones, steps = [1.0] * 4, range(100, 140, 10)
    assert _troubles(steps=steps, loss_scale=ones, skipped_steps=[10.0] * 4) == [("LossScaleCollapse", 100)]
    assert _troubles(steps=steps, loss_scale=ones, skipped_steps=[1.0, 0.0, 0.0, 0.0]) == []
    search = [2.0**32, 2.0**28, 2.0**24, 2.0**20]
    assert _troubles(steps=steps, loss_scale=search, skipped_steps=[10.0] * 4) == []
    assert _troubles(steps=[61, 62], loss=[5.0, 5.0], loss_scale=[0.5, 0.5]) == [("LossScaleCollapse", 61)]
