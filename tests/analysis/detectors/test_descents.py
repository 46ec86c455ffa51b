"""Short descents that break off, jumps at equal distances, and losses of data beside those of a game or a policy."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.analysis.detectors import detect
from tests.analysis.curves import analysed, run_of


def _told(run):
    return [(i.condition, i.first_step) for i in detect(run) if i.is_problem]


def test_a_jump_of_two_records_in_a_short_steady_descent():
    loss = [2.31, 2.05, 1.87, 1.72, 1.61, 1.52, 5.3, 4.4, 1.41, 1.36, 1.32, 1.3]
    assert _told(run_of(loss=loss)) == [("LossSpike", 6)]
    assert not _told(run_of(loss=[*loss[:6], 5.3, *loss[8:]])), "one bad batch"
    assert not _told(run_of(loss=[2.31, 1.7, 2.2, 1.6, 1.9, 1.5, 2.9, 2.4, 1.41, 1.9, 1.32, 1.8])), "noise"
    assert not _told(run_of(loss=[2.31, 2.1, 5.3, 4.4, 1.9, 1.7, 1.6, 1.5])), "the hump of a start without a warm-up"


@pytest.mark.parametrize(
    ("loss", "at"),
    [
        ([2.32, 2.0, 1.77, 1.61, 2.2, 2.99, 3.79, 4.62], 4),
        ([10.9, 8.6, 6.9, 5.8, 10.9, 10.9, 10.9, 10.9], 4),
        ([10.8, 7.5, 5.7, 8.5, 12.3], 3),
        ([0.3, 0.1, -0.1, -0.25, 0.4, 0.6, 0.9], 4),
    ],
)
def test_a_descent_of_which_nothing_is_left(loss, at):
    assert ("LossDivergence", at) in _told(run_of(loss=loss))
    assert not _told(run_of(loss=[*loss[:at], loss[at], *(loss[at - 1] * 0.98 for _ in loss[at + 1 :])]))


def test_two_records_of_another_height_in_an_excerpt_of_five_are_no_divergence():
    assert not _told(run_of(loss=[2.1, 1.5, 1.2, 1.9, 1.7]))


def test_a_value_twice_as_high_as_the_best_is_no_error():
    assert detect(run_of(loss=[0.0004, 0.0002, 0.0004, 0.0004, 0.0004, 0.0004, 0.0004, 0.0004])) is not None


def _cycles(length: int, cycle: int, rise: float) -> np.ndarray:
    at = np.arange(length)
    loss = 0.5 + 2 * np.exp(-at / (length / 3)) + rise * (1 - at % cycle / cycle) * (at >= cycle)
    return loss * np.exp(0.004 * np.random.default_rng(0).standard_normal(length))


def test_jumps_at_equal_distances_that_come_back_are_a_schedule():
    found = detect(run_of(loss=_cycles(300, 60, 0.4)))
    assert not [i for i in found if i.is_problem]
    assert any("warm restarts" in i.text for i in found)


def test_jumps_at_other_distances_are_told():
    at = np.arange(300)
    loss = 0.5 + 2 * np.exp(-at / 100)
    for start in (60, 150, 190):
        loss[start : start + 20] += 0.6 * np.exp(-np.arange(20) / 8)
    loss *= np.exp(0.004 * np.random.default_rng(0).standard_normal(300))
    assert [step for name, step in _told(run_of(loss=loss)) if name == "LossSpike"] == [60, 150, 190]


def _with_a_game(mel):
    return run_of(component__loss_disc=[2.5] * 40, component__loss_gen=[2.2] * 40, component__loss_mel=mel)


def test_a_reconstruction_loss_beside_those_of_a_game():
    mel = 20 + 25 * np.exp(-np.arange(40) / 10)
    assert not _told(_with_a_game(mel))
    mel[25:] *= np.linspace(3, 6, 15)
    found = [i for i in detect(_with_a_game(mel)) if i.is_problem]
    assert [(i.condition, i.first_step, i.signal) for i in found] == [("LossDivergence", 25, "loss_mel")]
    assert "'loss_mel'" in found[0].text


def test_a_reward_that_is_lost_at_once():
    rng = np.random.default_rng(0)
    reward = 20 * (1 - np.exp(-np.arange(40) / 12)) + 0.3 * rng.standard_normal(40)
    assert not _told(run_of(other__reward=reward, component__value_loss=[0.3] * 40))
    reward[24:] = 0.4 + 0.1 * rng.standard_normal(16)
    assert _told(run_of(other__reward=reward, component__value_loss=[0.3] * 40)) == [("RewardCollapse", 24)]


def test_a_value_loss_that_stays_far_above_what_rewards_explain():
    loss = [0.4, 0.35, 0.3, 0.28, 0.25, 6e4, 1.1e5, 1.6e5, 2e5]
    found = _told(run_of(component__value_loss=loss, other__mean_reward=[2.0, 3, 4, 5, 6, 7, 8, 9, 10]))
    assert found == [("LossDivergence", 5)]
    assert not _told(run_of(component__value_loss=[1.0, 2, 4, 9, 20, 60, 80, 90, 99], other__mean_reward=range(1, 10)))


def test_a_divergence_of_the_policy_that_stays_high():
    kl = [0.01, 0.008, 0.012, 0.009, 0.011] * 4 + [0.2, 0.9, 3.1, 12.0] + [50.0] * 16
    names = [i.condition for i in analysed(run_of(other__kl=kl, other__reward=[0.3] * 40)).incidents if i.is_problem]
    assert "KLRunaway" in names


def test_a_training_whose_validation_jumps_too_did_not_get_harder_data():
    loss = [6.9, 5.9, 5.5, 4.9, 4.3, 3.6, 6.9, 6.91, 6.9, 6.88, 6.88, 6.87]
    assert ("LossDivergence", 6) in _told(run_of(loss=loss, eval_loss=[1.05 * x for x in loss]))


def test_a_perplexity_of_guessing():
    rng = np.random.default_rng(0)
    ppl = 32000 * np.exp(0.002 * rng.standard_normal(40))
    assert [name for name, _ in _told(run_of(loss__ppl=ppl))] == ["NotLearning"]


def test_a_loss_of_two_digits_late_in_a_training_may_move_unseen():
    steps = [50_000 + 50 * i for i in range(120)]
    found = analysed(run_of(loss=[0.31] * 120, steps=steps)).incidents
    assert not [i for i in found if i.is_problem and i.condition == "LossConstant"]
    found = analysed(run_of(loss=[0.31213] * 120, steps=steps)).incidents
    assert [i for i in found if i.is_problem and i.condition == "LossConstant"]


def test_a_second_cycle_as_long_as_the_first_is_a_schedule():
    at = np.arange(124)
    cycle = np.where(at < 40, at, np.minimum(at - 40, 40))
    height = np.where(at < 40, 2.0, 0.9)
    loss = 0.45 + height * (1 + np.cos(np.pi * np.minimum(cycle / 40, 1))) / 2 + 0.05 * (at < 40)
    loss = loss * np.exp(0.01 * np.random.default_rng(0).standard_normal(124))
    loss[0] = 4.0
    assert not _told(run_of(loss=loss))
    short = loss.copy()
    short[45:] = np.minimum(short[45:], 0.5)
    assert _told(run_of(loss=short)), "back after five records"


def test_one_validation_loss_in_all_validations():
    loss = [0.9545, 0.9512, 0.9512, 0.9487, 0.9512, 0.9487]
    found = _told(run_of(loss=loss, eval_loss__test_loss=[0.90144944] * 6))
    assert ("NotLearning", 0) in found
    assert not _told(run_of(loss=loss, eval_loss__test_loss=[0.9] * 6)), "too few digits"


def test_few_records_that_fall_by_more_than_they_rise():
    loss = [3.2, 3.7, 3.9, 2.0, 4.2, 10.1, 10.0, 12.4, 8.1, 5.8, 13.5, 8.9, 5.9, 14.9, 11.9, 12.5, 13.1]
    assert not _told(run_of(loss=loss))


def test_a_rise_in_the_first_records_begins_where_the_curve_was_lowest():
    loss = [6.9, 4.2, 2.9, 2.45, 2.63, 3.5, 5.2, 6.2, 6.9, 7.1, 6.4, 3.6, 2.8, 2.7, 2.8, 2.1, 2.3, 2.4, 2.2]
    assert _told(run_of(loss=loss, eval_loss=[1.05 * x for x in loss])) == [("LossSpike", 5)]


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ([11.2, 18.9, 44.8, 71.1, 81.5, 86.0, 85.2, 84.4], True),
        ([11.2, 18.9, 44.8, 71.1], False),
        ([16.9, 39.1, 33.4, 31.2, 31.5, 30.9, 31.3, 34.6, 31.0, 30.8, 31.9, 30.2], True),
        ([16.9, 39.1, 37.2, 35.1, 33.5, 31.9, 30.1, 29.0, 28.2, 27.9, 27.1, 26.8], False),
        ([16.9, 20.1, 33.4, 18.2, 24.5, 30.9, 17.3, 34.6, 21.0, 30.8, 19.9, 25.2], False),
    ],
)
def test_a_level_high_above_the_first_record(loss, told):
    assert _told(run_of(loss=loss)) == ([("LossDivergence", 1)] if told else [])


def test_validations_at_the_margin_of_triplets():
    loss = [0.1911, 0.1876, 0.1853, 0.1822, 0.1791, 0.1768]
    assert _told(run_of(loss=loss, eval_loss__val_loss=[0.2] * 6)) == [("NotLearning", 0)]
    assert not _told(run_of(loss=loss, eval_loss__val_loss=[0.22] * 6)), "no margin"
    assert not _told(run_of(loss=[0.2, 0.2, 0.2, 0.1, 0.1, 0.1], eval_loss__val_loss=[0.2] * 6)), "rounded"


def test_gradients_of_0_beside_a_loss_of_other_batches():
    loss, rate = [208.4, 208.9, 209.2, 208.6], [2e-3] * 4
    assert _told(run_of(loss=loss, grad_norm=[0.0, 0.0, np.nan, 0.0], learning_rate=rate)) == [("NotLearning", 0)]
    assert not _told(run_of(loss=loss, grad_norm=[0.0, 0.0, 0.1, 0.0], learning_rate=rate))
