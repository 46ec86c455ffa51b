"""What few records show: an explosion after a descent, a step up, a loss that stays where it began."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stabwatch.analysis.detectors import detect
from tests.analysis.curves import run_of


def _told(run):
    return [(i.condition, i.first_step) for i in detect(run) if i.is_problem]


def test_an_explosion_after_a_short_descent():
    found = _told(run_of(loss=[7.1, 5.2, 3.9, 61.0, 58.0, 64.0]))
    assert found and found[0][1] == 3
    assert not _told(run_of(loss=[7.1, 5.2, 3.9, 6.5, 5.0, 4.1]))


@pytest.mark.parametrize("height", [1.9, 3.0])
def test_a_step_up_from_a_curve_that_has_fallen_far(height):
    rng = np.random.default_rng(0)
    loss = np.concatenate((30 * np.exp(-np.arange(20) / 3), np.full(20, 0.03))) + 0.1
    loss *= np.exp(0.05 * rng.standard_normal(40))
    assert not _told(run_of(loss=loss))
    up = loss.copy()
    up[28:36] *= height
    assert ("LossSpike", 28) in _told(run_of(loss=up))


def test_noise_and_four_bad_records_are_no_step():
    rng = np.random.default_rng(1)
    loss = 2 * np.exp(0.3 * rng.standard_normal(120))
    assert not _told(run_of(loss=loss))
    loss = 2 * np.exp(0.05 * rng.standard_normal(120))
    loss[60:64] *= 2
    assert not _told(run_of(loss=loss))


def test_a_smooth_loss_that_rises_by_a_third_over_many_records():
    rng = np.random.default_rng(2)
    loss = np.concatenate((np.linspace(4, 2, 100), np.linspace(2, 2.8, 150))) + 0.02 * rng.standard_normal(250)
    assert [kind for kind, _ in _told(run_of(loss=loss))] == ["LossDivergence"]


def _epochs(**columns):
    return replace(run_of(**columns), step_unit="epoch")


def test_a_flat_loss_and_a_flat_accuracy_learn_nothing_whatever_the_task():
    loss = [3.412, 3.405, 3.398, 3.401, 3.407, 3.399]
    flat = _epochs(loss=loss, other__acc=[0.071, 0.069, 0.074, 0.07, 0.068, 0.072])
    assert [kind for kind, _ in _told(flat)] == ["NotLearning"]
    rises = _epochs(loss=loss, other__acc=[0.071, 0.099, 0.12, 0.15, 0.19, 0.22])
    assert not _told(rises)
    assert not _told(_epochs(loss=loss))


def test_a_loss_that_goes_up_and_down_to_an_end_above_all_before():
    found = _told(run_of(loss=[6.1, 4.2, 3.4, 3.3, 3.4, 5.1, 8.5, 8.3, 16.0, 83.0, 184.0, 211.0]))
    assert found and found[0][0] == "LossDivergence"
    assert not _told(run_of(loss=[6.1, 4.2, 3.4, 3.3, 3.4, 5.1, 4.5, 4.3, 5.0, 5.3, 4.4, 5.1]))
    fallen = [6 / (1 + i / 2) for i in range(30)]
    assert not _told(run_of(loss=[*fallen, 9.0, 11.0])), "two bad batches at the end"


def test_validations_that_leave_for_good_while_training_falls():
    train = [6.1, 4.4, 3.6, 3.1, 2.9, 2.75, 2.6, 2.5]
    assert ("LossDivergence", 5) in _told(_epochs(loss=train, eval_loss=[12.2, 4.2, 3.4, 3.3, 3.4, 9.1, 84.0, 211.0]))
    assert not _told(_epochs(loss=train, eval_loss=[12.2, 4.2, 3.4, 3.3, 3.4, 4.1, 5.0, 5.2]))


@pytest.mark.parametrize(("name", "told"), [("avg_rewards", ["RewardCollapse"]), ("reward", [])])
def test_a_mean_reward_that_falls_below_zero(name, told):
    assert [
        kind for kind, _ in _told(run_of(**{f"other__{name}": [272.0, -21.5], "other__entropy": [3.3, 0.4]}))
    ] == told


def test_a_cycle_of_the_rate_that_comes_back_lower():
    first = 0.1 + 8 * np.exp(-np.arange(30) / 5)
    again = np.concatenate((np.linspace(0.2, 0.33, 4), np.linspace(0.32, 0.08, 26)))
    assert not _told(run_of(loss=np.concatenate((first, again))))


def test_words_that_are_all_wrong_and_inserted_ones():
    wer = {"other__train-WER": [100.33, 100.73, 102.58]}
    assert [kind for kind, _ in _told(run_of(loss=[78.5, 80.9, 81.5], **wer))] == ["NotLearning"]
    assert not _told(run_of(loss=[78.5, 70.9, 61.5], **wer))


@pytest.mark.parametrize("end", [[-1.5e25, -4e40], [-1.5e25]])
def test_a_lower_bound_that_explodes_below_zero(end):
    bound = [-521.7, -517.4, -514.9, -512.9, -511.2]
    assert _told(run_of(loss__Lowerbound=bound + end)) == [("LossDivergence", 5)]
    assert not _told(run_of(loss__Lowerbound=[*bound, -520.0]))
