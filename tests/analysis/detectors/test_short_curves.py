"""Spikes in curves of few records, and which of them are none."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.analysis.detectors import detect
from stabwatch.analysis.readers.log import Remark
from tests.analysis.curves import run_of


def _troubles(values, first=0, apart=10):
    run = run_of(loss=list(values), steps=[first + apart * i for i in range(len(values))])
    return [(f.condition, f.first_step, f.last_step) for f in detect(run) if f.is_problem]


DESCENT = [13.4, 5.4, 7.1, 5.7, 5.2, 4.7, 4.5, 3.8, 3.4, 3.7, 3.2, 3.1, 2.8, 2.97, 2.94]
AFTER = [2.9, 2.86, 2.84, 2.81, 2.83, 2.78, 2.74, 2.71, 2.72, *np.linspace(2.7, 2.5, 20)]


def test_a_jump_and_the_way_back_at_a_coarse_cadence():
    assert _troubles([*DESCENT, 6.6, 4.6, 3.5, 3.0, *AFTER]) == [("LossSpike", 150, 170)]


def test_a_single_record_is_an_odd_batch():
    assert _troubles([*DESCENT, 6.6, 2.93, *AFTER]) == []


def test_records_that_are_equally_high_and_then_gone_are_odd_batches():
    assert _troubles([*DESCENT, 6.6, 6.5, 2.93, *AFTER]) == []


def test_all_that_was_learned_is_lost_for_a_while():
    values = [6.9, 4.2, 2.8, 2.3, 2.1, 2.4, 2.9, 5.0, 6.1, 7.0, 7.4, 12.0, 8.3, 7.1, 4.7, 3.6, 2.7, 2.5, 2.3, 2.2, 2.1]
    assert _troubles(values) == [("LossSpike", 70, 140)]


@pytest.mark.parametrize(
    ("values", "onset"),
    [
        ([3.06, 3.11, 7.71], 2),
        ([3.32, 3.42, 3.68, 7.27, 4.13, 7.6], 3),
        ([6.44, 11.42, 7.16], 1),
        ([2.776, 2.773, 2.768, 7.34, 8.72, 7.65, 7.19, 6.85], 3),
    ],
)
def test_lines_that_were_pasted_because_of_a_spike(values, onset):
    assert _troubles(values, first=11_000, apart=1) == [("LossSpike", 11_000 + onset, None)]


def test_an_excerpt_that_goes_on_rising_diverges():
    assert _troubles([6.37, 7.1, 8.4, 9.6, 10.24], first=6900)[0][0] == "LossDivergence"


def test_what_the_curve_does_everywhere_is_its_noise():
    rng = np.random.default_rng(5)
    clean = 4 * np.exp(-np.arange(6000) / 900) + 0.005
    values = clean * np.where(np.arange(6000) % 97 < 8, 1 + 6 * rng.random(6000), 1 + 0.2 * rng.random(6000))
    assert _troubles(values, apart=1) == []


def test_the_slow_way_back_belongs_to_a_spike():
    rng = np.random.default_rng(3)
    values = np.full(600, 0.05) * (1 + 0.05 * rng.standard_normal(600))
    values[:100] += np.linspace(3, 0, 100)
    for at in (250, 330, 410):
        values[at : at + 25] += 0.3 * np.exp(-np.arange(25) / 9)
    assert [(kind, step) for kind, step, _ in _troubles(values, apart=1)] == [
        ("LossSpike", at) for at in (250, 330, 410)
    ]


def test_a_burn_in_moves_by_its_own_size():
    hump = 750 + 590 * np.sin(np.linspace(0, np.pi, 36))
    values = [*np.linspace(1958, 750, 40), *hump, *(750 * 0.97 ** np.arange(240))]
    assert _troubles(values, apart=1) == []


@pytest.mark.parametrize(
    ("values", "onset"),
    [
        ([1.593, 1.406, 3.316, 6.437, 5.478, 4.857, 4.874, 4.604], 2),  # falls first, and never comes back
        ([2.3, 2.5, 3.1, 4.2, 6.5, 11.0, 25.0, 80.0], 2),
        ([2.31, 2.29, 40.0, 800.0], 2),
        ([2.3, 4000.0], 1),  # two records
        ([0.7, 9.0, 11.0], 1),
        ([0.69, 0.68, *[8.0] * 60], 2),  # and the rest of the run stays there
    ],
)
@pytest.mark.parametrize("first", [0, 20_000])
def test_an_explosion_in_the_first_records_is_judged(values, onset, first):
    run = run_of(loss=values, steps=[first + 10 * i for i in range(len(values))])
    found = [f for f in detect(run) if f.is_problem]
    assert found and found[0].condition in ("LossDivergence", "LossSpike")
    assert abs(found[0].first_step - (first + 10 * onset)) <= 20 and found[0].last_step is None
    if len(values) < 20:
        assert f"only {len(values)} records, so this is" in found[0].text


@pytest.mark.parametrize(
    "values",
    [
        [1.24, 1.84, 1.87, 1.80, 1.72, 1.59, 1.58],  # a fine-tune whose rate warms up
        [0.45, 1.8, 1.2, 0.9, 2.2, 1.1],  # one batch of one example each
        [12.0, 22.5, 9.1, 7.4, 7.0],  # no warm-up
        [14.1, 76.8, 17.0],
        [10.9, 25.0, 60.0, 42.0, 31.0, 22.0],  # the same, still falling where the excerpt ends
        [11.9, 11.9, 11.9, 11.9, 12.6, 11.2, 10.4, 9.8],  # an fp16 scale search
        [1958, 1400, 900, 750, 1100, 1340, 900, 600],  # a burn-in
        [0.0, 0.1, 0.4, 0.9, 1.3],
        [2.3, 2.3],
    ],
)
def test_the_first_records_of_healthy_runs_are_calm(values):
    assert _troubles(values) == []


def test_returns_in_reinforcement_learning_may_begin_low():
    run = run_of(loss=[0.01, 0.4, 2.1, 7.0, 9.5, 12.0], other__reward=[1.0, 2.0, 4.0, 9.0, 12.0, 15.0])
    assert [f for f in detect(run) if f.is_problem] == []


def test_records_in_a_row_are_one_event_with_its_length():
    rng = np.random.default_rng(0)
    values = 0.7 + 0.03 * rng.standard_normal(400)  # flat from the start
    values[60:62], values[120:122] = (2.0, 1.3), (2.2, 1.2)
    high = [2.48, 1.95, 1.81, 1.64, 1.51, 1.57, 1.4, 1.32, 1.31, 1.23, 1.11, 1.02]
    values[300:312] = high
    (spike,) = [f for f in detect(run_of(loss=values)) if f.condition == "LossSpike"]
    assert (spike.first_step, spike.last_step, spike.records, spike.is_problem) == (300, 311, 12, True)
    (odd,) = [f for f in detect(run_of(loss=values)) if f.condition == "LossOutliers"]
    assert odd.records == 4 and "4 records, up to 2 of them in a row, are" in odd.text


def test_a_statement_about_the_next_record_needs_a_next_record():
    norms = [0.79, 0.8, 0.79, 0.78, 0.79, 0.79, 0.8, 0.79, 11.5, 13.5]
    run = run_of(loss=np.linspace(9.9, 9.8, 10), grad_norm=norms, steps=range(430, 530, 10))
    (odd,) = [f for f in detect(run) if f.condition == "GradientNormOutliers"]
    assert "2 records in a row" in odd.text and "the log ends with it" in odd.text
    back = run_of(loss=np.linspace(9.9, 9.7, 11), grad_norm=[*norms, 0.8], steps=range(430, 540, 10))
    (odd,) = [f for f in detect(back) if f.condition == "GradientNormOutliers"]
    assert "normal after that" in odd.text
    (end,) = [f for f in detect(run_of(loss=[2.0, 2.1, 2.0, 2.0, 9.0], steps=range(700, 705))) if f.is_problem]
    assert "in the last record of the log" in end.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2.0, 1.9, np.nan, 1.8, 1.7], "is NaN at step 2, in 1 record, and is finite again"),
        ([2.0, 1.9, 1.9, 1.8, np.nan], "is NaN at step 4, in its last record."),
        ([2.0, np.nan, 1.9, 1.8, np.nan], "is NaN at step 1, in 2 records, the last of them at step 4, where the log"),
        ([2.0, 1.9, 1.9, np.inf, np.nan], "is infinite at step 3, and remains non-finite in the 2 records up to the"),
    ],
)
def test_numbers_of_records_are_put_right(values, words):
    assert words in next(f.text for f in detect(run_of(loss=values)) if f.condition == "NonFinite")


def test_a_scale_that_was_not_printed_is_not_named():
    stuck = "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 1, reducing to 1"
    remarks = [Remark("overflow", i, i + 1, stuck, 1.0) for i in range(5, 15)]
    (found,) = [f for f in detect(run_of(remarks, loss=[2.5] * 30)) if f.condition == "LossScaleCollapse"]
    assert "The loss scale is 1 at step 6 and cannot be reduced, in spite of 10 overflows." in found.text
    unknown = [Remark("overflow", 5, 6 + i, "Grad scale is small: 0.1", 2.0**-i) for i in range(1, 9)]
    (found,) = [f for f in detect(run_of(unknown, loss=[2.5] * 30)) if f.condition == "LossScaleCollapse"]
    assert "collapses at step 6: to 0.00390625 in 8 overflows in a row" in found.text


def test_a_jump_at_a_resume_is_not_cut_in_two():
    steps = [*range(150), *range(140, 190)]
    calm = [3 - 0.01 * i for i in steps]
    jumped = [*calm[:150], *(9 + 0.001 * i for i in range(50))]
    (shift,) = [f for f in detect(run_of(loss=jumped, steps=steps)) if f.is_problem]
    assert (shift.condition, shift.first_step) == ("LossShift", 140) and "where the run was resumed" in shift.text
    back = [*calm[:150], *(9 * 0.8**i + 1.5 for i in range(50))]
    (spike,) = [f for f in detect(run_of(loss=back, steps=steps)) if f.is_problem]
    assert spike.condition == "LossSpike" and spike.last_step is not None
    assert [f for f in detect(run_of(loss=calm, steps=steps)) if f.is_problem] == []
    two = [*calm[:150], *(3 - 0.01 * i for i in range(50))]  # another run in the same file
    assert [f for f in detect(run_of(loss=two, steps=[*range(150), *range(50)])) if f.is_problem] == []


def test_a_validation_loss_that_explodes_is_more_than_overfitting():
    best = [1.2 - 0.01 * e for e in range(30)]
    (found,) = [f for f in detect(run_of(eval_loss=[*best, *(0.9 * 2.0**e for e in range(1, 10))])) if f.is_problem]
    assert (found.condition, found.severity) == ("LossDivergence", "warning")
    assert [f for f in detect(run_of(eval_loss=[*best, *(0.9 + 0.1 * e for e in range(1, 10))])) if f.is_problem] == []


@pytest.mark.parametrize("values", [[5.07946, 4.88092, 87.3365, 87.3365], [1.2, 1.1, 1.15, 9.0, 12.0, 9.5]])
def test_an_excerpt_that_ends_far_above_in_more_than_one_record(values):
    assert [kind for kind, *_ in _troubles(values, first=2300, apart=100)] == ["LossDivergence"]


@pytest.mark.parametrize(("value", "count", "found"), [(10.8259, 6, True), (0.6931, 12, False), (10.8259, 4, False)])
def test_one_number_in_all_records(value, count, found):
    assert [kind for kind, *_ in _troubles([value] * count, first=760)] == ["NotLearning"] * found


def test_a_last_loss_of_exactly_zero():
    assert [kind for kind, *_ in _troubles([1.3, 2.7, 0.0], first=440)] == ["LossTooGood"]
    assert _troubles([0.9, 0.01, 0.7, 0.6, 0.0], first=440) == []
    assert [kind for kind, *_ in _troubles([0.0] * 5, first=170)] == ["LossTooGood"]


def test_records_of_several_kinds_are_no_hump():
    run = run_of(loss=[248.0, 58752.0, 1076.0, 258.0, 58401.0, 1259.0, 321.0, 250.0])
    assert [f.condition for f in detect(run)] == []


def test_what_was_learned_and_then_rises_is_no_hump():
    assert [kind for kind, *_ in _troubles([15.5, 13.0, 3.8, 2.39, 1.43, 5.82, 7.05, 10.03], first=1, apart=55)] == [
        "LossDivergence"
    ]
    assert _troubles([8.0, 7.9, 7.5, 9.0, 10.0, 11.0, 7.0], first=1, apart=55) == []


def test_noise_after_one_record_is_no_spike():
    assert _troubles([2.568, 4.360, 3.074, 3.925, 2.525], first=1390, apart=1) == []


def test_a_single_record_of_an_excerpt_far_above_all_others():
    assert _troubles([0.81, 4.2, 0.74, 0.55, 0.8], first=2565, apart=1) == [("LossSpike", 2566, 2566)]
    assert _troubles([0.81, 4.2, 0.74, 0.25, 0.8], first=2565, apart=1) == []  # the others vary, too
    assert _troubles([0.81, 2.9, 0.74, 0.55, 0.8], first=2565, apart=1) == []
    assert _troubles([0.81, 4.2, 0.74, 0.55, 0.8]) == []  # the start of a training


def test_a_loss_in_nats_that_gives_back_what_it_had_gained():
    nats = [10.5, 10.6, 10.1, 9.2, 8.2, 7.7, 7.8, 8.0, 9.7, 9.9]
    steps = range(12_900, 13_400, 50)
    run = run_of(loss=nats, other__ppl=np.exp(nats), steps=steps)
    assert [(f.condition, f.first_step) for f in detect(run) if f.is_problem] == [("LossDivergence", 13_250)]
    assert [f for f in detect(run_of(loss=nats, steps=steps)) if f.is_problem] == []  # whatever its unit is


def test_a_training_whose_losses_rise_from_the_first_record():
    rising = [0.71, 0.73, 0.75, 0.77, 0.79, 0.81, 0.83]
    both = run_of(loss=rising, eval_loss=[v - 1e-3 for v in rising], steps=range(1, 8))
    assert [(f.condition, f.first_step) for f in detect(both) if f.is_problem] == [("LossDivergence", 2)]
    falls = run_of(loss=rising, eval_loss=rising[::-1], steps=range(1, 8))
    assert [f for f in detect(falls) if f.is_problem] == []
    assert [f for f in detect(run_of(loss=rising, steps=range(1, 8))) if f.is_problem] == []  # one curve: a warm-up


def test_two_records_without_loss_and_gradient():
    empty = run_of(loss=[0.0, 0.0], grad_norm=[0.0, 0.0], learning_rate=[1e-5, 2e-5])
    assert [f.condition for f in detect(empty) if f.is_problem] == ["LossTooGood"]
    assert "and so is the gradient norm" in next(f.text for f in detect(empty) if f.is_problem)
    assert [f for f in detect(run_of(loss=[0.0, 0.0])) if f.is_problem] == []


def test_three_overflows_at_a_scale_that_is_low_already():
    loss = list(np.linspace(3, 2.9, 9))
    steps = range(1000, 1009)
    low = run_of(loss=loss, loss_scale=[128, 128, 128, 64, 32, 16, 16, 16, 16], steps=steps)
    assert [f.condition for f in detect(low) if f.is_problem] == ["LossScaleCollapse"]
    for scale in ([2**15, 2**15, 2**15, 2**14, 2**13, 2**12, *[2**12] * 3], [128, 128, 128, 64, 32, *[32] * 4]):
        assert [f for f in detect(run_of(loss=loss, loss_scale=scale, steps=steps)) if f.is_problem] == []


def test_an_explosion_in_an_excerpt_begins_where_it_does():
    found = _troubles([0.144, 25_000, 75_000, 28_000, 134_000, 437_000], first=408, apart=1)
    assert found == [("LossDivergence", 409, None)]


def test_a_rise_after_flat_first_records():
    assert _troubles([1.4, 1.2, 1.35, 1.36, 1.44, 1.2, 1.8, 2.2, 2.4], first=100, apart=100) == [
        ("LossDivergence", 700, None)
    ]
    assert _troubles([1.4, 1.2, 1.35, 1.8, 2.2, 2.4], first=100, apart=100) == []  # in the first records


def test_margins_that_stay_exactly_zero():
    still = run_of(loss=[0.6931] * 4, **{"other__rewards/margins": [0.0] * 4, "other__rewards/chosen": [0.0] * 4})
    assert [f.condition for f in detect(still) if f.is_problem] == ["NotLearning"]
    moves = run_of(loss=[0.6931] * 4, **{"other__rewards/margins": [0.0, 1e-4, 0.0, -1e-4]})
    assert [f for f in detect(moves) if f.is_problem] == []


def test_a_perplexity_at_its_cap():
    cap = float(np.exp(100))
    run = run_of(loss=[6776.2, 6487.7], other__ppl=[cap, cap], steps=[50, 100])
    assert [f.condition for f in detect(run) if f.is_problem] == ["NotLearning"]
    assert [f for f in detect(run_of(loss=[9.2, 9.2], other__ppl=[9897.1, 9897.1])) if f.is_problem] == []


def test_an_accuracy_that_never_changes():
    flat = [0.7534, 0.7533, 0.7534, 0.7534]
    stuck = run_of(loss=flat, other__acc=[0.4992] * 4)
    assert [f.condition for f in detect(stuck) if f.is_problem] == ["NotLearning"]
    calm = (
        {"loss": flat, "other__acc": [0.4992, 0.4992, 0.5012, 0.4992]},
        {"loss": [0.9, 0.8, 0.7, 0.6], "other__acc": [0.4992] * 4},
        {"loss": flat, "other__acc": [1.0] * 4},
        {"loss": flat, "other__acc": [0.4992] * 4, "steps": range(500, 504)},
    )
    assert [f.text for columns in calm for f in detect(run_of(**columns)) if f.is_problem] == []
    errors = run_of(**{"loss__train-error": [0.010225] * 6}, steps=range(106, 112))
    assert [f for f in detect(errors) if f.is_problem] == []  # a share takes few values


def test_three_losses_that_double_together_from_the_first_record():
    rising = [2.8, 4.7, 7.6, 10.5, 12.7]
    parts = {"component__b_loss": [v / 4 for v in rising], "component__c_loss": [v + 0.1 for v in rising]}
    run = run_of(loss__a_loss=rising, **parts, steps=range(200, 700, 100))
    assert [(f.condition, f.first_step) for f in detect(run) if f.is_problem] == [("LossDivergence", 300)]
    parts["component__c_loss"] = parts["component__c_loss"][::-1]
    run = run_of(loss__a_loss=rising, **parts, steps=range(200, 700, 100))
    assert [f for f in detect(run) if f.is_problem] == []


def test_a_loss_that_comes_back_from_beyond_all_is_a_spike_and_not_too_good():
    values = [2214.4, 6.05e21, 7.36, 11.0, 33.2, 32.7]
    (spike,) = [f for f in detect(run_of(loss=values, steps=range(143, 149))) if f.is_problem]
    assert (spike.condition, spike.first_step, spike.last_step) == ("LossSpike", 144, 144)
    assert any(f"{(6.05e21 - 2214.4) / 1107.2:.3g} times" in line for line in spike.evidence)


def test_overflows_behind_the_last_record_are_told_so():
    told = [Remark("overflow", 7890, 20 + i, "", 256 / 2**i) for i in range(8)]
    run = run_of(loss=[0.15, 0.148, 0.147, 0.148], steps=[6312, 6838, 7364, 7890], remarks=told)
    (found,) = [f for f in detect(run) if f.condition == "LossScaleCollapse"]
    assert "collapses after step 7890" in found.text and "after step 7890" in found.evidence[0]


def test_a_scale_between_two_records_is_not_counted_in_reductions():
    steps = range(5000, 5400, 10)
    scale = [2.0**18] * 20 + [2.0**10] * 20
    run = run_of(loss=list(np.linspace(3, 2.9, 40)), loss_scale=scale, steps=steps)
    (found,) = [f for f in detect(run) if f.condition == "LossScaleSearch"]
    assert "is lower than before in 1 record. Once it fell by a factor of 256 between two records" in found.text
    assert "never" not in found.text and "normal" not in found.text


def test_a_first_value_that_is_nan_was_not_always_so():
    run = run_of(loss=[np.nan, 0.25, 0.15], steps=[1, 2, 3])
    assert all("never finite" not in line for f in detect(run) for line in f.evidence)
    run = run_of(loss=[np.nan, np.nan], steps=[1, 2])
    assert any("never finite" in line for f in detect(run) for line in f.evidence)
