"""What trainers of many people print, read to the last step and value."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import numpy as np
import pytest

from stabwatch.analysis.readers import read_log
from tests.analysis.curves import analysed

N = 40
FALL = [8 - 0.1 * i for i in range(N)]

TRAINERS = {
    # name: (text of record {i} from 1 with loss {l}, name of the loss, its first step, steps from one record to the next)
    "wenet": (
        "2023-01-30 18:{i:02}:07,107 DEBUG TRAIN Batch 4/{h} loss {l:.6f} loss_att {l:.6f} loss_ctc 26.426980 lr 0.00032621 rank 0\n",
        "loss", 100, 100,
    ),
    "wenet of now": (
        "2024-04-16 02:{i:02}:04,158 DEBUG TRAIN | steps/sec 1.25| Batch 0/{h} loss {l:.6f} loss_att {l:.6f} loss_ctc 80.5 th_accuracy 0.06 lr 0.00000004 rank 0\n",
        "loss", 100, 100,
    ),
    "icefall": (
        "2022-10-03 21:{i:02}:24,891 INFO [train.py:908] (0/4) Epoch 1, batch {h}, loss[loss={l:.4f}, simple_loss=0.73, over 2402.00 frames.], tot_loss[loss=0.45, simple_loss=0.71, over 4670.1 frames.], batch size: 9, lr: 2.1e-03\n",
        "loss", 100, 100,
    ),
    "rsl_rl": (
        "################################################################################\n                      Learning iteration {i}/5000                       \n\n"
        "                       Computation: 44180 steps/s (collection: 1.731s, learning 0.495s)\n             Mean action noise std: 1.00\n"
        "          Mean value_function loss: {l:.4f}\n               Mean surrogate loss: -0.0036\n                       Mean reward: 4.39\n"
        "               Mean episode length: 29.72\n--------------------------------------------------------------------------------\n"
        "                   Total timesteps: {h}\n                    Iteration time: 2.23s\n                        Total time: 40.14s\n                               ETA: 111350.7s\n\n",
        "Mean value_function loss", 1, 1,
    ),
    "isaac lab": (
        "################################################################################\n                           Learning iteration {i}/30000                           \n\n"
        "                            Total steps: {h} \n                       Steps per second: 1581 \n                        Collection time: 0.102s \n"
        "                        Mean value loss: {l:.4f} \n                    Mean surrogate loss: -0.0100 \n                      Mean entropy loss: 1.3900 \n"
        "                            Mean reward: -8.00 \n                        Mean action std: 1.01 \n             Episode_Reward/lin_vel: 0.3317 \n"
        "                           Iteration time: 0.16s\n                           Time elapsed: 00:00:0{d}\n                                ETA: 01:21:0{d}\n\n",
        "Mean value loss", 1, 1,
    ),
    "stable-baselines3": (
        "-----------------------------------------\n| rollout/                |             |\n|    ep_len_mean          | 200         |\n|    ep_rew_mean          | -204        |\n"
        "| time/                   |             |\n|    fps                  | 8507        |\n|    iterations           | {i}          |\n|    total_timesteps      | {h}        |\n"
        "| train/                  |             |\n|    approx_kl            | 0.01197     |\n|    entropy_loss         | -1.38       |\n|    value_loss           | {l:.3f}    |\n"
        "-----------------------------------------\n",
        "value_loss", 1, 1,
    ),
    "data2text": (
        "Epoch 1 ; Iter {h}/9000 ; LR 1.0000 ; Target tokens/s 1260 ; PPL {l:.2f} ;\n", "PPL", 100, 100,
    ),
    "opennmt in lua": (
        "Epoch 1 ; Iteration {h}/77776 ; Learning rate 1.0000 ; Source tokens/s 1270 ; Perplexity {l:.2f}\n", "Perplexity", 100, 100,
    ),
    "trl": (
        "  1%|▏         | {i}/9000 [00:1{d}<15:11,  1.13s/it]\r{{'loss': {l:.4f}, 'grad_norm': 8.9396, 'learning_rate': 2.3e-05, 'rewards/chosen': -1.0, 'rewards/margins': 0.0, 'logps/chosen': -319.5, 'epoch': 0.{h:04}}}\n",
        "loss", 1, 1,
    ),
    "axolotl": (
        "  1%|▏         | {i}/4000 [00:1{d}<15:11,  1.13s/it]{{'loss': {l:.4f}, 'grad_norm': 0.37, 'learning_rate': 2e-06, 'memory/max_mem_active(gib)': 20.3, 'epoch': 0.01}}\n"
        "[2025-02-01 12:{i:02}:01,123] [INFO] [axolotl.train:50] [PID:77] GPU memory usage while training: 12.5GB\n",
        "loss", 1, 1,
    ),
    "llama-factory": (
        '{{"current_steps": {h}, "total_steps": 9000, "loss": {l:.4f}, "lr": 4.9e-05, "epoch": 0.02, "percentage": 1.3, "elapsed_time": "0:00:1{d}", "remaining_time": "0:12:34"}}\n',
        "loss", 100, 100,
    ),
    "llama-factory in the terminal": (
        "[INFO|2024-06-01 10:{i:02}:04] llamafactory.train.callbacks:157 >> {{'loss': {l:.4f}, 'learning_rate': 4.9990e-05, 'epoch': 0.05, 'throughput': 1843.97}}\n",
        "loss", 0, 1,
    ),
    "unsloth": ("{i}\t{l:.6f}\n", "Training Loss", 1, 1),
    "nnu-net": (
        "2023-08-09 14:{i:02}:25.642001:  \n2023-08-09 14:{i:02}:25.642011: Epoch {i} \n2023-08-09 14:{i:02}:25.642085: Current learning rate: 0.01 \n2023-08-09 14:{i:02}:25.642409: train_loss {l:.4f} \n"
        "2023-08-09 14:{i:02}:25.642440: val_loss {l:.4f} \n2023-08-09 14:{i:02}:25.642441: Pseudo dice [0.4798, 0.0984, nan, 0.0551] \n2023-08-09 14:{i:02}:25.642452: Epoch time: 134.72 s \n",
        "train_loss", 1, 1,
    ),
    "caffe of a solver": (
        "I0425 10:12:1{d}.611122  9167 solver.cpp:237] Iteration {h}, loss = {l:.5f}\nI0425 10:12:1{d}.611122  9167 solver.cpp:253]     Train net output #0: loss = {l:.5f} (* 1 = {l:.5f} loss)\n"
        "I0425 10:12:1{d}.611122  9167 sgd_solver.cpp:106] Iteration {h}, lr = 0.001\n",
        "loss", 100, 100,
    ),
    "megatron": (
        " iteration {h:8}/  159576 | consumed samples: 25600 | elapsed time per iteration (ms): 4247.9 | learning rate: 6.000E-05 | global batch size: 256 | lm loss: {l:.6E} | loss scale: 4096.0 | grad norm: 0.517 | number of skipped iterations:   0 | number of nan iterations:   0 |\n",
        "lm loss", 100, 100,
    ),
}  # fmt: skip
HEADS = {"unsloth": "Step\tTraining Loss\n"}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_is_read_to_its_last_step(name, tmp_path):
    form, column, first, apart = TRAINERS[name]
    lines = (form.format(i=i, h=100 * i, d=i % 10, l=loss) for i, loss in enumerate(FALL, 1))
    path = tmp_path / "train.log"
    path.write_text(HEADS.get(name, "") + "".join(lines))
    (run,) = read_log(path).runs
    (loss,) = (c for c in run.columns if c.name == column)
    assert loss.steps.tolist() == [first + apart * i for i in range(N)]
    assert loss.values.tolist() == pytest.approx(FALL, abs=0.006)
    assert analysed(run).calm


def test_a_record_above_the_first_step_is_told(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(
        "".join(
            f"{{'loss': {loss:.2f}, 'epoch': 0.01}}\n {i}/900 [00:11<15:11, 1.13s/it]\n" for i, loss in enumerate(FALL)
        )
    )
    log = read_log(path)
    assert log.runs[0].of("loss").steps.tolist() == list(range(N - 1))
    assert "1 record is left out, because no step is printed above." in log.notes


def test_a_step_behind_its_value(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(
        "".join(
            f"global_step={2000 * i + 1999}, episodic_return=-12.6\nlosses/q1_loss {loss:.4f} {2000 * (i + 1)}\nlosses/alpha [0.07] {2000 * (i + 1)}\n"
            for i, loss in enumerate(FALL)
        )
    )
    (run,) = read_log(path).runs
    (loss,) = (c for c in run.columns if c.name == "losses/q1_loss")
    assert loss.steps.tolist() == [2000 * (i + 1) for i in range(N)]
    assert loss.values.tolist() == pytest.approx(FALL)


def test_a_count_of_samples_behind_a_value_is_no_step(tmp_path):
    path = tmp_path / "train.log"
    path.write_text("".join(f"step {i} loss {loss:.4f}\ntest/acc 0.51 10000\n" for i, loss in enumerate(FALL)))
    (run,) = read_log(path).runs
    assert run.of("loss").steps.tolist() == list(range(N))


def test_a_line_that_continues_behind_a_bar_is_understood(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(
        "".join(
            f"[losses/total_loss: {loss:.2f}]:  54%|███▉  | {i}/6400 [14:30:53<3:14:06,  3.96s/it][RANK 0] Collecting\n"
            for i, loss in enumerate(FALL)
        )
    )
    log = read_log(path)
    assert len(log.runs[0].of("loss")) == N and not any("not understood" in note for note in log.notes)


def test_blocks_that_end_with_their_step(tmp_path):
    block = "episode_reward_mean: {r}\nepisodes_total: 2301\nhostname: here\ninfo:\n  default:\n    entropy: 2.39\n    policy_loss: -0.0166\n    total_loss: {l:.4f}\n    vf_loss: {l:.4f}\npid: 123\ntimestamp: 1548971844\ntraining_iteration: {i}\n\n"
    path = tmp_path / "train.log"
    path.write_text("".join(block.format(i=i + 27, l=loss, r=".nan" if i < 2 else -9.5) for i, loss in enumerate(FALL)))
    (run,) = read_log(path).runs
    assert run.of("loss").name == "total_loss" and run.of("loss").steps.tolist() == list(range(27, 27 + N))
    (reward,) = (c for c in run.columns if c.name == "episode_reward_mean")
    assert np.isnan(reward.values).tolist() == [True] * 2 + [False] * (N - 2)
    assert analysed(run).calm


def test_the_count_of_all_steps_counts_before_that_of_an_epoch(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(
        "".join(
            f"train | data_epochs  0/10 | inner iter:   {i % 8}/  8 | ppo epoch:  {i % 4}/ 4 | global iter:     {i}/  5000| tot_loss: {loss:.4f} | lr: 2.5e-07 |\n"
            for i, loss in enumerate(FALL)
        )
    )
    assert read_log(path).runs[0].of("loss").steps.tolist() == list(range(N))


MORE = {
    # counts in front of their names, in brackets of both kinds, and names in brackets
    "iterations in front": "000 epoch, {h:05} iter, average time 0.6359, loss {l:.4f}\n",
    "parentheses": "Epoch:[0/19]({h}/24681) loss:{l:.3f} lr:0.00020000 epoch_Time:98.0min:\n",
    "names in brackets": "2019-08-07 02:{i:02}:37,013 - __main__ - INFO - [epoch]: 199, [batch]: {h}, [loss]: {l}\n",
}


@pytest.mark.parametrize("name", MORE)
def test_counts_in_odd_places(name, tmp_path):
    path = tmp_path / "train.log"
    path.write_text("".join(MORE[name].format(i=i, h=100 * i, l=loss) for i, loss in enumerate(FALL, 1)))
    loss = read_log(path).runs[0].of("loss")
    assert loss.steps.tolist() == [100 * i for i in range(1, N + 1)]
    assert loss.values.tolist() == pytest.approx(FALL, abs=0.001)


def test_what_is_learned_by_heart_in_fifty_epochs_is_calm(tmp_path):
    path = tmp_path / "train.log"
    losses = [1.141, 0.0003, 0.0001, 0.0001, 0.0001, 0.0001]
    path.write_text("".join(f"{{'loss': {loss}, 'epoch': {50.0 * i}}}\n" for i, loss in enumerate(losses, 1)))
    assert analysed(read_log(path).runs[0]).calm
    path.write_text("".join(f"{{'loss': {loss}, 'epoch': {1.0 * i}}}\n" for i, loss in enumerate(losses, 1)))
    assert not analysed(read_log(path).runs[0]).calm


@pytest.mark.parametrize(
    ("line", "name", "role"),
    [
        (
            "{i}/9500 (epoch 1.2), train_loss = 2.4{i}, grad/param norm = 7.6e-02, time/batch = 0.16s\n",
            "grad/param norm",
            "other",
        ),
        ("step {i} loss 2.4{i} param norm 51.2\n", "param norm", "other"),
        ("step {i} loss 2.4{i} | weight norm: 51.2 | grad norm: 0.9\n", "grad norm", "grad_norm"),
        (
            "Epoch {i}, train loss: 2.4{i}\nEpoch {i}, Validation perplexity: 12.5\n",
            "Validation perplexity",
            "eval_loss",
        ),
        ("Epoch {i}, train loss: 2.4{i}, val loss: 2.6, val ppl: 12.5\n", "val ppl", "other"),
    ],
)
def test_what_a_name_means(line, name, role, tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(line.format(i=i) for i in range(1, 9)))
    (run,) = read_log(path).runs
    assert {c.name: c.role for c in run.columns}[name] == role
