"""Kinds of excerpts that were missed or misread at a first reading, with other numbers; look-alikes that are calm."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import pytest

from stabwatch.analysis import analyze

KERAS = "Epoch {0}/50\n120/120 [==============================] - 3s 25ms/step - loss: {1} - accuracy: {2} - val_loss: {3} - val_accuracy: {4}\n"
GCN = "Epoch: 000{0} train_loss= {1} train_acc= {2} val_loss= {3} val_acc= {4}\n"
RCNN = "iter: {0} / 70000, total loss: {1}, rpn_loss_cls: {2}, rpn_loss_box: {3}, loss_cls: {4}, loss_box: {5}, lr: 0.001000\nspeed: 0.4s / iter\n"
GRPO = "{{'loss': 0.0,\n 'grad_norm': {0},\n 'zero_var_ratio': 0.9,\n 'rewards/accuracy_reward': {1},\n 'rewards/format_reward': {1},\n 'reward': {1},\n 'reward_std': {2},\n 'epoch': 0.07}}\n\n"
DIT = "2025-08-23 06:19:3{0},452 - trainers.dit - WARNING - Step 30{0}: detected nan/inf/spiky gradient (norm={1}); skipping optimizer step.\n2025-08-23 06:19:3{0},600 - trainers.dit - INFO - Step   30{0} | Loss: 0.5{0}1 | LR: 3.00e-04\n"
RLKIT = "replay_buffer/size                       41000\ntrainer/QF1 Loss                              {0}\ntrainer/QF2 Loss                              {1}\ntrainer/Policy Loss                          {2}\ntrainer/Log Pis Std                           1.12\n"
HF = "  {0}%|█▊       | {0}/100 [00:31<25:24, 31.11s/it]\n{{'loss': {1}, 'grad_norm': {2}, 'learning_rate': 1e-05, 'epoch': 0.{0}}}\n"


def _told(tmp_path, text: str):
    path = tmp_path / "log.txt"
    path.write_text(text)
    analysis = analyze(path)
    run = analysis if hasattr(analysis, "incidents") else next(iter(analysis))
    return run, [(i.condition, i.first_step) for i in run.incidents if i.is_problem]


def _of(form: str, rows) -> str:
    return "".join(form.format(*row) for row in rows)


TROUBLE = {
    "guessing among a number of classes that nobody lists": (
        _of(GCN, [(i, 1.7918 + i / 1e4, 0.16 + i / 900, 1.7921, 0.155) for i in range(9)]),
        "NotLearning",
        0,
    ),
    "three epochs at the loss of guessing": (
        _of(KERAS, [(i, 2.9957 + i / 1e4, 0.05, 2.9958, 0.05) for i in range(1, 4)]),
        "NotLearning",
        1,
    ),
    "three epochs with one loss": (
        "".join(f"Epoch [{i}/20], Loss: 4.1093\n" for i in range(1, 5)),
        "NotLearning",
        1,
    ),
    "no box was ever predicted, in steps": (
        _of(RCNN, [(10 * i, 0.9 - i / 40, 0.5 - i / 40, 0.4, "0.0000", "0.0000") for i in range(1, 10)]),
        "NotLearning",
        10,
    ),
    "no reward at all, in a dictionary over several lines": (_of(GRPO, [(1.61, 0.0, 0.0)]), "NotLearning", 0),
    "loss and gradient are 0 in the only record": (_of(HF, [(1, 0.0, 0.0)]), "LossTooGood", 1),
    "a value loss in two columns that no reward explains": (
        RLKIT.format("2.7e+17", "2.6e+17", "-3.1e+09"),
        "LossDivergence",
        0,
    ),
    "NaN is the number in the message": (
        _of(DIT, [(i, 0.4) for i in range(2)])
        + "2025-08-23 06:19:39,452 - trainers.dit - WARNING - Step 309: detected nan/inf gradient (norm=nan); skipping optimizer step.\n",
        "NonFinite",
        301,
    ),
}
CALM = {
    "a hard task falls from the loss of guessing": _of(
        KERAS, [(i, 2.9957 - i / 20, 0.05 + i / 40, 2.99 - i / 25, 0.06 + i / 50) for i in range(1, 9)]
    ),
    "a few first batches without a box": _of(
        RCNN, [(20 * i, 1.05 - i / 9, 0.37, 0.11, 0.19 / i, "0.0000") for i in range(1, 5)]
    ),
    "a group of answers with rewards": _of(GRPO, [(1.61, 0.5, 0.0)]),
    "a threshold of the gradient norm": _of(DIT, [(i, 2.1 + i / 10) for i in range(6)]),
    "a value loss in two columns": RLKIT.format("21.4", "22.9", "-71.2"),
    "a loss of 0 while rewards are learned": _of(HF, [(1, 0.0, 0.31)]),
    "a fit whose records between are left out": "".join(
        f"({i}, {x})\n" for i, x in [(0, 91.7), (1, 76.8), (2, 63.4), (3, 51.4), (4, 40.9), (5, 31.8), (300, 2e-12), (301, 1e-12), (302, 1e-12)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_told(tmp_path, name):
    text, condition, step = TROUBLE[name]
    _, told = _told(tmp_path, text)
    assert (condition, step) in told, told


@pytest.mark.parametrize("name", CALM)
def test_what_looks_alike_is_calm(tmp_path, name):
    _, told = _told(tmp_path, CALM[name])
    assert not told


def test_a_dictionary_over_several_lines_is_one_record(tmp_path):
    run, _ = _told(tmp_path, _of(GRPO, [(1.6, 0.2, 0.4), (1.5, 0.3, 0.4), (1.2, 0.4, 0.4)]))
    assert {c.name: len(c) for c in run.curves.columns}.items() >= {"loss": 3, "grad_norm": 3, "reward": 3}.items()


def test_lines_of_a_block_without_a_step_are_one_record(tmp_path):
    block = "Train loss: {0}\nTrain accuracy: 0.5\nValid loss: {1}\n\nnothing\n\n"
    run, _ = _told(tmp_path, _of(block, [(2.1, 2.2), (1.9, 2.0), (1.7, 1.9)]))
    assert {len(set(c.steps.tolist()) & {0, 1, 2}) for c in run.curves.columns if "loss" in c.name} == {3}


def test_what_stands_behind_a_bar_is_no_epoch(tmp_path):
    text = "".join(
        f"Epoch {i}/100\n140/150 [===========>.] - ETA: 0s - loss: 0.{99 - i} - acc: 0.8"
        + ("Restoring model weights from the end of the best epoch: 5." if i == 9 else "")
        + f"\n150/150 [==============] - 7s 5ms/step - loss: 0.{99 - i} - acc: 0.8 - val_loss: 1.1\n"
        for i in range(1, 10)
    )
    run, told = _told(tmp_path, text + "31/31 [==========] - 1s 3ms/step - loss: 1.0917 - acc: 0.6\n")
    assert not told
    loss = next(c for c in run.curves.columns if c.name == "loss")
    assert loss.values.max() < 1


def test_one_answer_is_no_finding_where_training_learns_nothing_either(tmp_path):
    _, told = _told(tmp_path, _of(KERAS, [(i, 2.3026, 0.4, 2.3027, 0.4) for i in range(1, 7)]))
    assert told and {condition for condition, _ in told} == {"NotLearning"}


def test_each_epoch_has_the_same_numbers(tmp_path):
    metrics = [0.71875, 0.6890625, 0.6765625, 0.67109375, 0.6703125, 0.6734375]
    rows = [(e, 20 * (i + 1), m) for e in range(5) for i, m in enumerate(metrics)]
    _, told = _told(tmp_path, _of("epoch {0} iter {1} metric ('accuracy', {2})\n", rows))
    assert told == [("NotLearning", 20)]
    moved = [(e, s, m + 0.001 * e) for e, s, m in rows]
    assert not _told(tmp_path, _of("epoch {0} iter {1} metric ('accuracy', {2})\n", moved))[1]


def test_a_validation_loss_that_no_digit_of_moves(tmp_path):
    row = "Epoch {0}/120\n - 1782s - loss: {1} - acc: 0.4487 - val_loss: {2} - val_acc: 0.4519\n"
    assert ("NotLearning", 44) in _told(
        tmp_path, _of(row, [(44, 4634412.5771, 4631173.004), (45, 4634412.5756, 4631173.004)])
    )[1]
    assert not _told(tmp_path, _of(row, [(44, 0.0312, 0.0451), (45, 0.0311, 0.0451)]))[1]


def test_precision_recall_and_f1_of_nothing_after_three_epochs(tmp_path):
    text = "eval_loss = {1}\neval_precision = {0}\neval_recall = {0}\neval_f1 = {0}\nepoch = 4.0\n"
    assert _told(tmp_path, text.format("0.0", 0.71))[1] == [("NotLearning", 0)]
    assert not _told(tmp_path, text.format("0.62", 0.21))[1]


def test_an_arrow_between_a_name_and_its_number(tmp_path):
    row = "INFO - 02/25/19 13:21:48 - 3:08:01 - epoch -> {0}.000000\nINFO - 02/25/19 13:21:48 - 3:08:01 - valid_mn_mlm_ppl -> {1}\n"
    run, told = _told(tmp_path, _of(row, [(0, 574.6), (1, 301.2), (2, 190.4)]))
    assert not told
    ppl = next(c for c in run.curves.columns if c.name == "valid_mn_mlm_ppl")
    assert (ppl.steps.tolist(), ppl.values.tolist()) == ([0, 1, 2], [574.6, 301.2, 190.4])
