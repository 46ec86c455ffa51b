"""Means over an epoch or an evaluation: one record far above all near it is told; batches and noise are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stabwatch.analysis.detectors import detect
from tests.analysis.curves import run_of

DESCENT = [2.1, 1.7, 1.45, 1.3, 1.21, 1.16, 1.12]
FALLS = [2.2, 1.8, 1.6, 1.5, 1.42, 1.38, 1.35]


def _told(unit: str = "epoch", **curves):
    found = detect(replace(run_of(**curves), step_unit=unit))
    return [(i.condition, i.first_step, i.last_step) for i in found if i.is_problem]


@pytest.mark.parametrize("times", [4, 30, 1e5])
def test_the_loss_of_the_last_epoch(times):
    loss = [*DESCENT, 1.1 * times]
    assert _told(loss=loss) == [("LossSpike", 7, None)]
    text = next(i.text for i in detect(replace(run_of(loss=loss), step_unit="epoch")) if i.is_problem)
    assert "in the last record of the log" in text and "certain" in text


def test_a_batch_is_no_mean():
    assert not _told("step", loss=[*DESCENT, 4.4])
    assert _told("step", loss=[*DESCENT, 44.0]) == [("LossSpike", 7, None)]
    assert not _told("step", loss=[*DESCENT, 4.4, 1.08, 1.05, 1.04])


def test_an_epoch_that_comes_back():
    assert _told(loss=[*DESCENT, 4.4, 1.08, 1.05, 1.04]) == [("LossSpike", 7, 7)]
    assert not _told(loss=[*DESCENT, 1.6, 1.08, 1.05, 1.04])


def test_two_high_epochs_after_a_steep_descent():
    loss = [9.5, 8.8, 1.6, 1.2, 0.85, 0.78, 0.67, 0.7, 2.4, 6.1, 0.62, 0.48, 0.39]
    assert _told(loss=loss) == [("LossSpike", 8, 9)]


def test_validations_that_explode_while_training_falls():
    loss = [*DESCENT, 1.1, 1.08, 1.06]
    assert _told(loss=loss, eval_loss=[*FALLS, 1.33, 1.31, 95.0]) == [("LossSpike", 9, None)]
    assert _told(loss=loss, eval_loss=[*FALLS, 1.33, 22.0, 31.0]) == [("LossDivergence", 8, None)]
    assert _told(loss=loss, eval_loss=[*FALLS, 44.0, 1.33, 1.31]) == [("LossSpike", 7, 7)]
    assert not _told(loss=loss, eval_loss=[*FALLS, 1.33, 1.31, 4.0])


@pytest.mark.parametrize("spread", [0.2, 0.4, 0.8])
def test_a_rough_curve_has_high_epochs(spread):
    rng = np.random.default_rng(3)
    rough = 2 * np.exp(spread * rng.standard_normal(40))
    assert not [told for told in _told(loss=rough.tolist()) if told[2] is None]
    falls = (3 * np.exp(-np.arange(40) / 9) + 0.5).tolist()
    assert not _told(loss=falls, eval_loss=(2 * np.exp(spread * rng.standard_t(5, 40))).tolist())


def test_another_training_in_the_same_log_begins_where_the_first_began():
    fast = [2.3, 0.9, 0.4, 0.2, 0.11, 0.07, 0.05]
    assert not [told for told in _told(loss=[*fast, 2.2]) if told[0] == "LossSpike"]
