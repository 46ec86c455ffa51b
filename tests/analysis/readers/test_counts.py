"""Counts in logs: per epoch or over all, rounded, of bars that are no training; and what is no count and no loss."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import json
import random

import pytest

from stabwatch.analysis.detectors import detect
from stabwatch.analysis.readers import read_log
from stabwatch.analysis.readers.names import is_eval, role_of
from stabwatch.errors import LogError
from tests.analysis.curves import analysed


def _read(tmp_path, text, name="train.log"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_log(path).runs[0]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Average Training loss", "loss"),
        ("avg loss", "loss"),
        ("Loss/train", "loss"),
        ("Loss/val", "eval_loss"),
        ("Loss/Total", "loss"),
        ("Loss/Mask", "component"),
        ("val/box_loss", "eval_loss"),
        ("train/box_loss", "component"),
        ("losses", "loss"),
        ("optim0_lr0", "learning_rate"),
        ("entropy_loss", "other"),
        ("eval/best_loss", "other"),
        ("FOCAL_LOSS_ALPHA", "other"),
        ("FED_LOSS_NUM_CLASSES", "other"),
        ("Win Rate", "other"),
        ("Minimum validation loss", "other"),
        ('img src="https://host/w2v-loss.png" width', "other"),
        ("grdn", "grad_norm"),
    ],
)
def test_roles_of_names(name, role):
    assert role_of(name) == role
    assert is_eval("ValLoss")


def test_what_an_epoch_costs_in_seconds_is_no_loss(tmp_path):
    run = _read(tmp_path, "".join(f"Epoch {e} Train, mse: {9 - e / 10}, Cost 715.7 sec\n" for e in range(9)))
    assert run.of("loss").name == "mse"


def test_the_first_part_is_judged_where_no_total_is_written(tmp_path):
    rows = "".join(f"{i},{3 - i / 10},{2 - i / 20},{4 - i / 10}\n" for i in range(20))
    run = _read(tmp_path, "epoch,train/mel_loss,train/kl_loss,val/mel_loss\n" + rows)
    assert run.of("loss").name == "train/mel_loss" and run.of("eval_loss").name == "val/mel_loss"


def test_batches_that_are_counted_anew_in_each_epoch(tmp_path):
    table = "Epoch,Batch,loss\n" + "".join(f"{e},{b},{2.5 - e / 10}\n" for e in range(4) for b in range(10))
    records = "".join(
        json.dumps({"mode": "train", "epoch": e, "iter": 50 * b, "loss": 2.5}) + "\n"
        for e in (1, 2, 3)
        for b in range(1, 6)
    )
    assert _read(tmp_path, table).steps.tolist() == list(range(40))
    assert _read(tmp_path, records).steps.tolist() == list(range(50, 800, 50))


def test_a_summary_without_a_step_stays_where_it_stands(tmp_path):
    history = [
        {"step": 500, "loss": 2.0, "epoch": 0.9},
        {"epoch": 1.0, "predict_loss": 1.5},
        {"step": 1000, "loss": 1.0},
    ]
    run = _read(tmp_path, json.dumps({"log_history": history}), "trainer_state.json")
    assert run.steps.tolist() == [500, 1000]


def test_rounded_steps_are_reckoned(tmp_path):
    names = ["400", "600", "800", *["1K"] * 5, *["2K"] * 5, *["3K"] * 5]
    text = "".join(
        f"INFO 2026-06-12 train.py:357 step:{n} loss:{5 - i / 10:.3f} grdn:8.5\n" for i, n in enumerate(names)
    )
    text = text.replace("loss:4.200", "loss:4.200 lr:1e-5\nINFO train.py:367 Checkpoint policy after step 2000\n", 1)
    assert _read(tmp_path, text).of("loss").steps.tolist() == list(range(400, 4000, 200))


def test_bars_that_prepare_and_lines_that_evaluate_count_nothing(tmp_path):
    text = "Map: 100%|████| 3290/3290 [00:11<00:00, 274.45 examples/s]\nLoading weights:  50%|██  | 5/10 [00:01<00:01,  5.82it/s]\n"
    text += "  Total optimization steps = 5,490\n"
    for e in (1, 2, 3):
        text += "".join(
            f"Train | Epoch {e} | {i}/573 | 1.45 it/sec | Loss 0.2343 | Grad 0.12\n" for i in (143, 286, 429)
        )
        text += f"Valid | Epoch {e} | 1/3 | 0.31 it/sec | Loss 0.2213\nValid | Epoch {e} | 2/3 | 0.31 it/sec | Loss 0.2213\n"
    run = _read(tmp_path, text)
    assert run.steps.tolist() == [143, 286, 429, 572, 715, 858, 1001, 1144, 1287]
    assert run.of("eval_loss").steps.tolist() == [429, 858, 1287]


def test_epochs_of_a_fraction_leave_the_step_alone(tmp_path):
    text = "".join(
        f"{{'loss': {2 - i / 10}, 'epoch': {0.9 * i:.2f}}}\n 10%|██  | {549 * i}/5490 [05:02<38:38,  2.13it/s]\n"
        f"{{'eval_loss': 1.5, 'epoch': {i}.0}}\n 10%|██  | {549 * i}/5490 [50:28<38:38,  2.13it/s]\n"
        for i in range(1, 6)
    )
    assert _read(tmp_path, text).of("eval_loss").steps.tolist() == [549 * i for i in range(1, 6)]


def test_epochs_count_below_settings_and_beside_evaluations(tmp_path):
    text = "lr: 0.0001\nbatch_size: 128\n" + "".join(
        f"INFO:root:Epoch {e} - Average Loss: {3 - e / 10:.4f}, Samples: 693\nINFO:root:Evaluation Epoch {e} - Average Loss: 3.1\n"
        for e in range(12)
    )
    run = _read(tmp_path, text)
    assert run.step_unit == "epoch" and run.of("loss").steps.tolist() == list(range(12))
    assert run.of("loss").values[0] == 3.0


def test_nan_in_a_metric_or_in_source_code_is_no_message(tmp_path):
    code = 'logging.warning(f"NaN loss at Epoch {epoch}")\n        val_loss = 0.0\n  print(f"step:{step} val_loss:{val_loss:.4f}")\n'
    text = code + "".join(
        f"iter={i:04} reward={i}.5 approx_kl=inf loss_critic={5 - i / 10:.4f} val_loss=3.5\n" for i in range(30)
    )
    run = _read(tmp_path, text)
    assert not run.remarks and set(run.of("eval_loss").values.tolist()) == {3.5}
    assert run.steps.tolist() == list(range(30))


def test_pairs_of_numbers_are_a_loss_only_where_nothing_else_is(tmp_path):
    pairs = "".join(f"{i} {i / 2}\n" for i in range(10))
    text = pairs + "".join(f"step {i} loss {4 - i / 20}\n" for i in range(30))
    assert _read(tmp_path, text).of("loss").values[0] == 4.0
    assert _read(tmp_path, pairs).of("loss").values.tolist() == [i / 2 for i in range(10)]


@pytest.mark.parametrize("wrap", [lambda t: t.encode("utf-16"), lambda t: bytes(200_000) + t.encode()])
def test_sixteen_bits_and_a_hole_of_zeros(wrap, tmp_path):
    """PowerShell's `>`; a log that was cut while its writer went on."""
    text = "".join(f"step {i} | loss {4 - i / 20:.4f} | lr 1e-4\r\n" for i in range(30))
    run = _read(tmp_path, wrap(text))
    assert run.of("loss").steps.tolist() == list(range(30)) and run.of("loss").lines[0] == 1
    assert all(analysed(run).calm for run in read_log(tmp_path / "train.log").runs)


def test_a_step_in_brackets_at_the_beginning_of_a_line_and_no_date(tmp_path):
    text = "".join(f"[{s:6}/1000  ] loss={9 - s / 500} lr=0.01 gnorm=10.9 tok/s=361\n" for s in range(50, 1001, 50))
    dated = "".join(f"[11/17 09:38:{s:02}] trainer: iter: {s}  loss: {9 - s / 50}\n" for s in range(1, 20))
    assert _read(tmp_path, "Learning rate: 0.02\n" + text).of("loss").steps.tolist() == list(range(50, 1001, 50))
    assert _read(tmp_path, dated).of("loss").steps.tolist() == list(range(1, 20))


def test_settings_above_records_that_are_numbered_are_none_of_them(tmp_path):
    settings = "Batch size: 2\nLearning rate: 0.001\nWeight decay: 0.1\n\nModel training.\n"
    text = "".join(f"Training Loss: {1 / (1 + i):.4f}\nModel test error: {2 / (1 + i):.4f}\n" for i in range(20))
    run = _read(tmp_path, settings + text)
    assert run.step_unit == "ordinal" and run.of("loss").steps[0] == 0 and run.of("learning_rate") is None


def test_a_loss_that_says_it_is_of_training_is_taken_before_one_that_does_not(tmp_path):
    """As where a validation gives its results bare, beside the training loss of the same record."""
    rows = [{"epoch": e, "train_loss": 0.2 - e / 200, "loss": 0.18 + e / 300, "f1": 0.5} for e in range(1, 21)]
    assert _read(tmp_path, json.dumps(rows), "metrics.json").of("loss").name == "train_loss"
    many = "".join(f"step: {s} loss: {3 - s / 100}\n" for s in range(100)) + "train_loss: 2.5\n"
    assert _read(tmp_path, many).of("loss").name == "loss"


def test_a_text_that_is_no_log_is_refused(tmp_path):
    with pytest.raises(LogError, match="nothing in it"):
        _read(tmp_path, "They'll sit by the fire, and presume to know\nWhich, I presumed, is resumed.\n" * 30)


def test_a_ruled_title_counts_epochs_and_no_steps(tmp_path):
    rule = "-" * 50
    text = "".join(
        f"04-06 22:01:17, {rule}Epoch:{e}/299{rule}\n04-06 22:12:25, Epoch {e} Train, loss:{0.3 - e / 200:.4f}, Cost: 668.1 sec\n"
        + (f"04-07 07:30:38, Epoch {e} Val, MAE: 14.68 Cost 239.5 sec\n" if e > 20 else "")
        for e in range(40)
    )
    run = _read(tmp_path, text)
    assert run.step_unit == "epoch" and run.of("loss").steps.tolist() == list(range(40))


def test_deepspeeds_own_steps_beside_those_of_a_script_begin_no_new_run(tmp_path):
    text = ""
    for s in range(1, 801):
        text += f"Epoch 0 step {s} loss {9 - s / 100:.4f}\n"
        if s % 40 == 0:
            text += f"[2023-04-18 02:33:34,071] [INFO] [logging.py:96:log_dist] [Rank 0] step={s // 4}, skipped=0, lr=[4.9e-06], mom=[(0.9, 0.95)]\n"
            text += f"[2023-04-18 02:33:34,071] [INFO] [timer.py:199:stop] epoch=0/micro_step={s}/global_step={s // 4}, RunningAvgSamplesPerSec=171.7, CurrSamplesPerSec=171.6\n"
    run = _read(tmp_path, text)
    assert run.steps.tolist() == run.of("loss").steps.tolist() == list(range(1, 801))
    assert run.of("learning_rate").steps.tolist() == list(range(40, 801, 40))


def test_two_writers_that_do_not_wait_for_each_other_are_one_run(tmp_path):
    rng = random.Random(0)
    late = sorted((s + 1.6 * rng.random(), s) for s in range(1, 300) for _ in range(2))
    path = tmp_path / "train.log"
    path.write_text("".join(f"step {s} loss {9 - s / 100:.4f} lr 0.001\n" for _, s in late))
    log = read_log(path)
    steps = log.runs[0].of("loss").steps.tolist()
    assert steps == sorted(set(steps)) and len(steps) > 280 and "Several writers" in log.notes[-1]
    assert not [f for f in detect(log.runs[0]) if f.condition in ("RunRestarted", "RunResumed")]


def test_averages_over_an_epoch_are_no_records_and_neither_is_that_there_was_no_nan(tmp_path):
    text = ""
    for e in range(5):
        text += "".join(
            f"Epoch: [{e}]  [{i}/9]  eta: 0:00:10  lr: 0.0001  loss: {9 - e - i / 10:.4f} (9.1)  loss_ce: 4.5\n"
            for i in range(9)
        )
        text += "Averaged stats: lr: 0.0001  loss: 5.5 (5.5)  loss_ce: 4.1\n"
        text += "Test:  [0/4]  eta: 0:00:01  loss: 50.5 (51.5)  loss_ce: 40\nAveraged stats: loss: 50.5 (50.9)  loss_ce: 40.1\n"
    run = _read(tmp_path, text + "- **No NaN losses** detected across all runs\n")
    assert len(run.of("loss")) == 45 and run.of("loss").values.max() < 10
    assert not run.remarks
