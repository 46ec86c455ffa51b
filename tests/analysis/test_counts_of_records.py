"""What counts the records of a log, where the line does not say it plainly; and what is judged with few of them."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from stabwatch.analysis import Analysis, analyze
from stabwatch.analysis.detectors.robust import rolling_median


def read(tmp_path, text: str, name: str = "train.log") -> Analysis:
    """The analysis of a text."""
    path = tmp_path / name
    path.write_text(text)
    return analyze(path)


def problems(run: Analysis) -> list[tuple[str, int]]:
    """Conditions above information, and where they begin."""
    return [(i.condition, i.first_step) for i in run.incidents if i.is_problem]


def test_a_count_in_brackets_behind_the_time_of_c(tmp_path):
    losses = [812.5, 790.1, 801.7, 777.2, 30211.9, 6.1e8, 830.4, 799.0, 781.3]
    text = "".join(f"Mon May  4 10:2{i}:11 2020 [{61 + i}] loss: {x}, time: {9.5 * i}\n" for i, x in enumerate(losses))
    run = read(tmp_path, text + "saved at epoch 70\n")
    assert (run.first_step, run.last_step) == (61, 69)
    assert problems(run) == [("LossSpike", 65)]


def test_calls_of_one_epoch_each_are_counted(tmp_path):
    call = "Epoch 1/1\n120/120 [==============================] - 4s 31ms/step - loss: {} - accuracy: 0.5\n  curr acc: 0.4\n"
    run = read(tmp_path, "".join(call.format(x) for x in (1.31, 1.22, 1.18, 1.02)))
    assert (run.records, run.first_step, run.last_step, run.unit) == (4, 1, 4, "epoch")
    told = read(tmp_path, "".join(f"epoch: {e}\n{call.format(1.0)}" for e in (7, 8, 9)))
    assert (told.first_step, told.last_step) == (7, 9)


def test_a_second_training_of_epochs_with_one_record_each(tmp_path):
    line = "Epoch {}/6\n\n500/500 [====================] - 10s 2ms/step - loss: {} - acc: {}\n"
    text = "".join(line.format(e, x, 0.6) for e, x in ((5, 1.03), (6, 0.98)))
    text += "The same on the other device:\n" + "".join(line.format(e, "nan", 0.1) for e in (1, 2, 3))
    assert problems(read(tmp_path, text)) == [("NonFinite", 1)]


def test_the_length_of_each_epoch_is_no_step(tmp_path):
    rows = [{"name": "validation", "epoch": e, "iteration": 21.0, "average loss": 0.5 - e / 100} for e in range(4, 9)]
    run = read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "log.jsonl")
    assert (run.records, run.first_step) == (5, 21)
    assert run.last_step == 5 * 21


@pytest.mark.parametrize("mark", ["", "\\"])
def test_backslashes_of_markdown(tmp_path, mark):
    text = "".join(
        f"Epoch {e}/9{mark}\n80/80 {mark}[=========={mark}] - 3s 4ms/step - loss: 0.{9 - e}5 - val{mark}_loss: nan{mark}\n"
        for e in (2, 3, 4)
    )
    run = read(tmp_path, text)
    assert (run.first_step, run.last_step, run.unit) == (2, 4, "epoch")
    assert problems(run) == [("NonFinite", 2)]


ULTRALYTICS = (
    "\r\x1b[K      {0}/30      2.21G     {1}     0.6931    0.00812         31        640: {2}% {3} {4}/4 5.1it/s 0.2s"
)


def test_the_bars_of_ultralytics(tmp_path):
    settings = "\x1b[34m\x1b[1mengine/trainer: \x1b[0mamp=True, augment=False, batch=8, box=7.5, cfg=None, data=a.yaml, lr0=0.01, resume=None, scale=0.5\n"
    head = "      Epoch    GPU_mem   box_loss   cls_loss   dfl_loss  Instances       Size\n"
    rows = "".join(
        head + "".join(ULTRALYTICS.format(e, x, 25 * k, "━" * k + "─" * (4 - k), k) for k in (1, 2, 3, 4)) + "\n"
        for e, x in enumerate((1.9, 1.7, 1.6, 1.5, 1.4), 1)
    )
    run = read(tmp_path, settings + rows)
    assert (run.records, run.first_step, run.last_step, run.unit) == (5, 1, 5, "epoch")
    assert not run.incidents


def test_a_table_without_the_count_of_the_others_is_no_restart(tmp_path):
    rollout = "-------------------------------\n| rollout/           |          |\n|    ep_len_mean     | 91.2     |\n|    ep_rew_mean     | {0}     |\n| time/              |          |\n|    fps             | 812      |\n|    iterations      | {1}        |\n|    total_timesteps | {2}     |\n-------------------------------\n"
    evaluation = "-------------------------------\n| eval/              |          |\n|    mean_ep_length  | 88       |\n|    mean_reward     | 31.5     |\n| time/              |          |\n|    total_timesteps | {0}    |\n-------------------------------\n"
    text = "".join(
        rollout.format(20.5 + i, i, 2048 * i) + (evaluation.format(2048 * i - 48) if i % 3 == 0 else "")
        for i in range(1, 13)
    )
    run = read(tmp_path, text)
    assert (run.records, run.first_step, run.last_step) == (12, 1, 12)
    assert not run.incidents


def test_a_mean_over_no_object_is_no_nan(tmp_path):
    line = "Region {0} Avg IOU: {1}, Class: {1}, Obj: {1}, No Obj: 0.48, .5R: {2}, .75R: {2},  count: {3}\n"
    calm = "".join(line.format(23, "-nan", "-nan", 0) + line.format(16, 0.31, 0.0, 5) for _ in range(4))
    assert not problems(read(tmp_path, calm))
    gone = "".join(line.format(23, "-nan", "-nan", 0) + line.format(16, "nan", 0.0, 5) for _ in range(4))
    assert [condition for condition, _ in problems(read(tmp_path, gone))] == ["NonFinite"]


def test_a_reward_named_by_its_first_letter(tmp_path):
    losses = ("9.2e-03", "2.3e-02", "8.5e-02", "1.7e-02", "1.1e-02", "1.2e-02")
    text = "".join(
        f"{400 + 50 * i} / 9000 eps 0.8 |  avgR -0.9{i} | Loss {x} | Grad 5e-03\n" for i, x in enumerate(losses)
    )
    assert not problems(read(tmp_path, text))


def test_a_validation_told_above_the_only_epoch(tmp_path):
    text = (
        "[2026-01-05 10:00:00] INFO app.validation:   Val[full]: loss=nan, mean_dice=0.05, recall=0.84\n"
        "[2026-01-05 10:00:09] INFO app.trainer: Epoch 1/500 | LR=3e-06 | loss=0.56 | val_dice=0.05\n"
        "[2026-01-05 10:00:10] INFO app.trainer:   Phase time (epoch 1): train=04:59 | val=39:50 | val=88.9% of both\n"
    )
    assert problems(read(tmp_path, text)) == [("NonFinite", 1)]


def test_a_discriminator_whose_loss_is_0_in_most_records(tmp_path):
    rows = [
        (0.0, 21.3),
        (0.0, 14.1),
        (0.2, 9.8),
        (0.0, 30.2),
        (0.0, 17.0),
        (0.0, 25.5),
        (0.0, 12.4),
        (0.0, 19.9),
        (0.0, 16.1),
    ]
    line = "Elapsed [8:3{0}:01] batch: {1}  d_loss: {2:.6f}  g_loss: {3:.6f}\n"
    text = "".join(line.format(i, 4000 + 50 * i, d, g) for i, (d, g) in enumerate(rows))
    assert problems(read(tmp_path, text)) == [("DiscriminatorCollapse", 4000)]
    near = "".join(line.format(i, 4000 + 50 * i, d, g / 10) for i, (d, g) in enumerate(rows))
    assert not problems(read(tmp_path, near))


def test_a_loss_and_a_norm_that_are_huge_all_the_time(tmp_path):
    losses = [3.4e8, 4.4e8, 2.5e8, 5.4e8, 2.7e8, 6.6e8, 4.3e8, 3.9e8, 4.8e8]
    line = "Step {0}: grad_norm={1}, loss={2}\n"
    text = "".join(line.format(5900 + 100 * i, x / 500, x) for i, x in enumerate(losses))
    assert problems(read(tmp_path, text)) == [("LossDivergence", 5900)]
    falls = "".join(line.format(5900 + 100 * i, x / 500, x * 0.5**i) for i, x in enumerate(losses))
    assert not problems(read(tmp_path, falls))
    assert not problems(read(tmp_path, "".join(line.format(5900 + 100 * i, 3.1, x) for i, x in enumerate(losses))))


def test_an_accuracy_of_0_beside_others_and_a_loss_that_stays(tmp_path):
    line = "Train step {0} -- Loss: {1}, MLM_acc: 0.000, SOP_acc: 0.5{2} -- It/s: 1.7\n"
    text = "".join(line.format(690 + 10 * i, 11.17 + 0.002 * (i % 3), i) for i in range(9))
    assert problems(read(tmp_path, text)) == [("NotLearning", 690)]
    assert not problems(read(tmp_path, "".join(line.format(690 + 10 * i, 11.17 - 0.02 * i, i) for i in range(9))))


@pytest.mark.parametrize("width", [257, 300, 998])
def test_the_median_of_wide_windows(width):
    values = np.random.default_rng(0).standard_normal(1500).round(2)
    assert np.array_equal(rolling_median(values, width), np.median(sliding_window_view(values, width), axis=1))


def test_batches_of_epochs_that_are_told_elsewhere(tmp_path):
    rng = np.random.default_rng(3)
    rows = []
    for epoch in range(40):
        losses = rng.gamma(3.0, 0.2, 8) * 0.97**epoch
        rows += [f"train --- Current batch:{200 * (k + 1)}/1600  loss:[ {x:.6f}]" for k, x in enumerate(losses)]
        rows.append(f"Epoch [{epoch}]/[199] \t Training Phase Loss: 0.05 \t Accuracy: 0.6")
    run = read(tmp_path, "\n".join(rows) + "\n")
    assert (run.records, run.first_step, run.last_step) == (320, 200, 40 * 1600)
    assert not problems(run)


def test_a_step_a_colon_and_a_value(tmp_path):
    values = [
        -5.48,
        -5.35,
        -5.29,
        -5.46,
        -5.54,
        -5.59,
        -5.45,
        -5.44,
        40490.17,
        -3.48,
        -2.21,
        -1.67,
        -1.45,
        -1.41,
        -1.28,
    ]
    run = read(tmp_path, "".join(f"{1380 + i}: {x:.6f}\n" for i, x in enumerate(values)))
    assert (run.first_step, run.last_step) == (1380, 1394)
    assert ("LossSpike", 1388) in problems(run)


def test_a_part_of_a_list_of_objects(tmp_path):
    rows = [{"dis/loss": x, "gen/loss": 7.5, "epoch": 0, "iteration": i} for i, x in enumerate((1.4, 1.3e6), 1)]
    text = ",\n    ".join(json.dumps(row, indent=8) for row in rows)
    for end in ("", ",\n", "\n]\n"):
        run = read(tmp_path, text + end, "log.json")
        assert (run.records, run.first_step, run.last_step) == (2, 1, 2)
        assert [step for _, step in problems(run)] == [2]


def test_an_explosion_begins_where_it_is_out_of_proportion(tmp_path):
    text = "".join(f"iter {50 * i}: loss: {x}\n" for i, x in enumerate((0.85, 2.44, 63118.5, 1.1e13), 1))
    assert problems(read(tmp_path, text)) == [("LossDivergence", 150)]


def test_noise_as_high_as_the_first_losses_is_no_new_beginning(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(3):
        level = 1.1 + 0.9 * np.exp(-np.arange(3000) / 60)
        losses = level * np.exp(0.28 * np.random.default_rng(seed).standard_normal(3000))
        i = int(rng.integers(900, 2500))
        losses[i : i + 5], losses[i - 5 : i] = losses[:5], 0.4 * losses[0]
        text = "".join(f"iter {10 * k}, loss: {x:.4f}\n" for k, x in enumerate(losses))
        assert "Reinitialisation" not in [condition for condition, _ in problems(read(tmp_path, text))]


def test_one_evaluation_far_above_both_its_neighbours(tmp_path):
    train = [31.0, 6.7, 2.1, 0.73, 0.58, 4.16, 0.52, 0.51, 0.49, 0.47, 0.43, 0.4]
    rows = ["step,loss,train/ctc_loss,validation/ctc_loss"]
    rows += [f"{i},{6.0 - i / 50},," for i in range(40)]
    rows += [f"{1700 * (i + 1)},,{x},{1.2 * x + 0.2}" for i, x in enumerate(train)]
    assert problems(read(tmp_path, "\n".join(rows) + "\n", "measurements.csv")) == [("LossSpike", 10200)]


CATBOOST = "{0}:\tlearn: {1}\ttest: {2}\tbest: {2} ({0})\ttotal: 61ms\tremaining: 1m {0}s\n"


def test_catboost_tells_a_loss_or_a_score(tmp_path):
    falls = read(tmp_path, "".join(CATBOOST.format(i, 0.69 * 0.95**i, 0.7 * 0.96**i) for i in range(12)))
    assert (falls.records, falls.first_step, falls.last_step) == (12, 0, 11)
    assert falls.loss is not None and falls.loss.name == "learn"
    assert not problems(falls)
    rises = read(tmp_path, "".join(CATBOOST.format(i, 0.9 - 0.4 * 0.7**i, 0.88 - 0.4 * 0.7**i) for i in range(12)))
    assert rises.records == 12 and not problems(rises)
    gone = read(tmp_path, "".join(CATBOOST.format(i, 0.6 if i < 6 else "nan", 0.6) for i in range(12)))
    assert problems(gone) == [("NonFinite", 6)]


def test_a_reward_of_0_in_all_records(tmp_path):
    line = "iteration {0}, ep_rew_mean: {1}, entropy: {2:.3f}, policy_loss: -0.0{3}, success_rate: {4}\n"
    rows = [(i, 1.9 - i / 100, i % 9) for i in range(60)]
    never = "".join(line.format(i, 0.0, entropy, k, 0.0) for i, entropy, k in rows)
    assert problems(read(tmp_path, never)) == [("NotLearning", 0)]
    some = "".join(line.format(i, 0.0, entropy, k, 0.5) for i, entropy, k in rows)
    assert not problems(read(tmp_path, some))
    assert not problems(read(tmp_path, "".join(line.format(i, 0.0, e, k, 0.0) for i, e, k in rows[:20])))
    late = "".join(line.format(19_500 + i, 0.0, e, k, 0.0) for i, e, k in rows[:12])
    assert problems(read(tmp_path, late)) == [("NotLearning", 19_500)]


def test_two_evaluations_far_above_while_the_training_loss_goes_on(tmp_path):
    train = [31.0, 6.7, 4.7, 4.4, 516.0, 3.1, 2.9, 2.1, 2.0, 1.9, 1.8, 1.7]
    rows = ["step,loss,train/loss,validation/loss"]
    for i, x in enumerate(train):
        rows += [f"{1500 * i + 100 * k},{4.5 - i / 10 + k / 90},," for k in range(1, 15)]
        rows.append(f"{1500 * (i + 1)},,{x},{1.1 * x}")
    assert problems(read(tmp_path, "\n".join(rows) + "\n", "measurements.csv")) == [("LossSpike", 7500)]
