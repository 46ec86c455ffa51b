"""Logs in the shapes of trainers that print blocks, sections, tables or files of their own."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import json
import math

import pytest

from stabwatch.analysis import open_source
from stabwatch.analysis.readers import read_log
from tests.analysis.curves import analysed

FALL = [8 - 0.1 * i for i in range(40)]


def _write(tmp_path, text, name="train.log"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


ONE_LINE = {
    "maxtext": "completed step: {i}, seconds: 2.167, TFLOP/s/device: 36.722, Tokens/s/device: 7812.1, total_weights: 65536, loss: {l:.3f}",
    "levanter": "2024-03-01T00:12:0{d} - 0 - levanter.callbacks - step: {i} - INFO :: train/loss: {l:.3f}",
    "nemo bar": "Epoch 0: :   {d}%|█         | {i}/1000 [00:1{d}<10:00, v_num=abc, reduced_train_loss={l:.3f}, global_step={i}.000, consumed_samples=256.0, train_step_timing in s=1.23]",
    "nemo": "Training epoch 0, iteration {i}/999 | lr: 1.499e-07 | global_batch_size: 8 | global_step: {i} | reduced_train_loss: {l:.3f} | train_step_timing in s: 5.05 | consumed_samples: 80",
    "llama2.c": "{i} | loss {l:.4f} | lr 1.0e-04 | 80{d}0.78ms | mfu 0.21%",
    "dreamer": "[{i}] kl_loss 1.2{d} / image_loss 2000 / reward_loss 0.9 / model_loss {l:.3f} / actor_loss -1.2 / value_loss 3.1 / train_return 12.{d} / fps 31",
    "opennmt": "[2018-11-26 14:47:2{d},759 INFO] Step {i}/50000; acc:  51.25; ppl:  8.43; xent: {l:.3f}; lr: 0.00066; 1320/1445 tok/s;  19995 sec",
    "torchtune": "1|{i}|Loss: {l:.5f}:   1%|▏         | {i}/808 [00:1{d}<15:11,  1.13s/it]",
    "mlx": "Iter {i}: Train loss {l:.3f}, Learning Rate 1.000e-05, It/sec 0.6{d}, Tokens/sec 380.079, Trained Tokens 390, Peak mem 6.906 GB",
    "kohya": "steps:  4%|█▉        | {i}/960 [13:1{d}<21:55, 21.93s/it, avr_loss={l:.4f}]",
    "full width": "训练次数：{i}，损失：{l:.4f}",
    "chinese": "训练次数：{i}, Loss：{l:.4f}",
    "caffe": "I0425 10:12:1{d}.611122  9167 solver.cpp:219] Iteration {i} (0.17 iter/s, 58.6s/10 iters), loss = {l:.5f}\nI0425 10:12:1{d}.611122  9167 solver.cpp:238]     Train net output #0: loss_x2 = 0.5 (* 1 = 0.5 loss)\nI0425 10:12:1{d}.611122  9167 solver.cpp:238]     Train net output #1: loss_x4 = 0.25 (* 1 = 0.25 loss)",
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_LINE)
def test_one_record_per_line(name, tmp_path):
    text = "".join(ONE_LINE[name].format(i=i + 1, d=i % 10, l=loss) + "\n" for i, loss in enumerate(FALL))
    (run,) = read_log(_write(tmp_path, text)).runs
    loss = run.of("loss")
    assert run.step_unit == "step" and loss.steps.tolist() == list(range(1, 41))
    assert loss.values.tolist() == pytest.approx(FALL, abs=0.001)
    assert all(column.name for column in run.columns)
    if name == "caffe":
        assert [len(c) for c in run.columns if c.role == "component"] == [40, 40]
    if name == "dreamer":
        assert loss.name == "model_loss" and any(c.name == "train_return" for c in run.columns)


SECTIONS = {
    "headings": ("===== Epoch {e} =====\nTraining:\n  loss: {t:.3f}\n  acc: 0.5\nValidation:\n  loss: {v:.3f}\n  acc: 0.4\n"),
    "labels": "2024-05-01T12:00:{e:02d}Z Epoch {e}/12\n----------\ntrain Loss: {t:.4f} Acc: 0.5\nval Loss: {v:.4f} Acc: 0.4\n\n",
    "brackets": "[train] epoch {e} loss {t:.4f}\n[valid] epoch {e} loss {v:.4f}\n",
    "phase": "Epoch {e} phase=train loss={t:.4f}\nEpoch {e} phase=val loss={v:.4f}\n",
    "markdown": "| {e} | {t:.4f} | {v:.4f} |\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_training_and_evaluation_under_one_name_stay_apart(name, tmp_path):
    head = "| Epoch | Training Loss | Validation Loss |\n|---|---|---|\n" if name == "markdown" else ""
    train, valid = [2 - 0.05 * e for e in range(1, 31)], [3 - 0.05 * e for e in range(1, 31)]
    text = "".join(SECTIONS[name].format(e=e, t=train[e - 1], v=valid[e - 1]) for e in range(1, 31))
    (run,) = read_log(_write(tmp_path, head + text)).runs
    assert run.of("loss").steps.tolist() == run.of("eval_loss").steps.tolist() == list(range(1, 31))
    assert run.of("loss").values.tolist() == pytest.approx(train, abs=0.001)
    assert run.of("eval_loss").values.tolist() == pytest.approx(valid, abs=0.001)
    assert analysed(run).calm


def test_a_block_whose_epoch_comes_last(tmp_path):
    block = "INFO Loss of the policy: {a}\nINFO Loss of the value function: {b}\nINFO Epoch: {e}\nINFO Average Episode Return: {r}\n"
    text = "".join(block.format(a=-0.1 * e, b=10 + e, e=e, r=20 + e) for e in range(12))
    (run,) = read_log(_write(tmp_path, text)).runs
    assert run.step_unit == "epoch"
    for column in run.columns:
        assert column.steps.tolist() == list(range(12)), column.name
    assert run.columns[1].values.tolist() == [10 + e for e in range(12)]


def test_rewards_in_blocks_are_read(tmp_path):
    block = "##########\n   Learning iteration {i}/300 \n\n     Mean value loss: {v}\n     Mean surrogate loss: -0.01\n     Mean reward: {r}\n     Total timesteps: {t}\n"
    text = "".join(block.format(i=i, v=1.0 + i, r=-8 + i, t=98304 * i) for i in range(30))
    (run,) = read_log(_write(tmp_path, text)).runs
    (reward,) = (c for c in run.columns if c.name == "Mean reward")
    assert reward.steps.tolist() == list(range(30)) and reward.values.tolist() == [-8.0 + i for i in range(30)]
    assert analysed(run).calm  # the value loss grows with the reward


def test_epochs_count_where_each_bar_is_full(tmp_path):
    text = "".join(f"Epoch {e}\n61878/61878 [====] - 5s - loss: {1.2 - e / 50:.4f}\n" for e in range(9))
    (run,) = read_log(_write(tmp_path, text)).runs
    assert run.step_unit == "epoch" and run.steps.tolist() == list(range(9))


def test_the_length_of_an_epoch_is_taken_from_the_log(tmp_path):
    text = "".join(f"Epoch {e} ; Iter {i}/213 ; LR 1.0 ; PPL {99 - e - i / 50:.2f} ;\n" for e in (1, 2, 3) for i in (50, 100, 150, 200))  # fmt: skip
    (run,) = read_log(_write(tmp_path, text)).runs
    assert run.steps.tolist() == [213 * e + i for e in range(3) for i in (50, 100, 150, 200)]


def test_a_count_of_the_form_n_of_m_in_json(tmp_path):
    rows = [{"loss": loss, "epoch": 0.01 * i, "global_step/max_steps": f"{i}/400"} for i, loss in enumerate(FALL)]
    (run,) = read_log(_write(tmp_path, "".join(json.dumps(r) + "\n" for r in rows))).runs
    assert run.steps.tolist() == list(range(40))


def test_fractions_of_epochs_are_no_records(tmp_path):
    rows = [{"loss": loss, "epoch": 0.01 * (i + 1)} for i, loss in enumerate(FALL)]
    (run,) = read_log(_write(tmp_path, "".join(json.dumps(r) + "\n" for r in rows))).runs
    assert run.step_unit == "ordinal" and len(run.of("loss")) == 40


def test_a_monitor_file(tmp_path):
    text = '#{"t_start": 1637082108.4, "env_id": "HalfCheetah-v3"}\nr,l,t\n' + "".join(f"{-23 + i},1000,{2 * i}\n" for i in range(60))  # fmt: skip
    (run,) = read_log(_write(tmp_path, text, "0.monitor.csv")).runs
    assert run.columns[0].name == "reward" and run.columns[0].values.tolist() == [-23.0 + i for i in range(60)]


def _store(folder):
    run = folder / "mlruns" / "1" / "abcdef0123456789"
    (run / "metrics" / "train").mkdir(parents=True)
    (run / "meta.yaml").write_text("artifact_uri: file:///x\nrun_name: bold-fox-12\n")
    losses = [2 - 0.01 * i if i < 60 else math.nan for i in range(80)]
    for name, values in (("loss", losses), ("train/grad_norm", [1.0] * 80)):
        lines = (f"{1_700_000_000_000 + 1000 * i} {value} {i}\n" for i, value in enumerate(values))
        (run / "metrics" / name).write_text("".join(lines))
    return run


@pytest.mark.parametrize("below", ["", "mlruns", "mlruns/1", "mlruns/1/abcdef0123456789", "mlruns/1/abcdef0123456789/metrics"])  # fmt: skip
def test_the_file_store_of_mlflow(below, tmp_path):
    _store(tmp_path)
    if not below:
        below = "mlruns"
    (source,) = open_source(tmp_path / below)
    run = source.run
    assert run.name == "bold-fox-12" and run.of("grad_norm").name == "train/grad_norm"
    assert run.steps.tolist() == list(range(80)) and run.times[1] - run.times[0] == pytest.approx(1.0)
    assert any("is NaN at step 60" in i.text for i in analysed(run).incidents)


def test_one_metric_of_mlflow(tmp_path):
    (run,) = read_log(_store(tmp_path) / "metrics" / "loss").runs
    assert run.of("loss").steps.tolist() == list(range(80))


def test_what_only_looks_like_a_list_is_not_called_json(tmp_path):
    text = "".join(f"[{1000 * i}] model_loss {5 - i / 10} / value_loss 2.0\n" for i in range(9))
    assert not any("JSON" in note for note in read_log(_write(tmp_path, text)).notes)
