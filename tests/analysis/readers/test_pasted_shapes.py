"""Shapes of lines in public bug reports, with other numbers: which number is the step, and which the loss."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import math

import pytest

from stabwatch.analysis.readers import read_log

BAR = "[==============================]"

SHAPES = {
    "a phase in brackets before a name": (
        "  |- lr\t0.001\n  |- n_iter\t200000\n  |- start:\n  |-   |- iter\t0\n"
        + "".join(f"ITER {i} TRAINING (phase 1). loss_vae: {x}; loss_recon: 0.03; Grad_norm: 3.5e-01\n" for i, x in ((0, 3.5), (500, 0.9), (1000, 0.7))),
        "loss_vae", [0, 500, 1000], [3.5, 0.9, 0.7],
    ),
    "a value at a step": ("".join(f"Cost after iteration {i}: {x}\n" for i, x in ((0, 0.69), (100, 0.58), (200, "nan"))), "Cost", [0, 100, 200], [0.69, 0.58, math.nan]),
    "allennlp: a table after each epoch": ("".join(f"2019-02-01 07:2{e}:36,509 - INFO - allennlp.training.trainer - {rest}\n" for e, x in ((4, 0.286), (5, 0.245)) for rest in (f"Epoch {e}/19", "                  Training |  Validation", "accuracy      |     0.918  |     0.879", "cpu_memory_MB |  5503.916  |       N/A", f"loss          |     {x}  |     0.507")), "training_loss", [4, 5], [0.286, 0.245]),
    "a block with a blank before each value": ("".join(f"Timestep {t}\nmean reward (100 episodes) -19.500000\nlearning_rate 0.000100\nloss {x}\n\n" for t, x in ((500000, 0.91), (1000000, 0.52))), "loss", [500000, 1000000], [0.91, 0.52]),
    "a value at an epoch and an iteration": ("".join(f"Loss at epoch {e} and iteration {i} is {x}\nNCE Loss at epoch {e} and iteration {i} is 0.9\n" for e, i, x in ((0, 0, 8.4), (0, 500, 2.1), (1, 0, 1.9))), "Loss", [0, 500, 1000], [8.4, 2.1, 1.9]),
    "an average at a step": ("".join(f"Average loss at step  {i} :  {x}\n" for i, x in ((2000, 4.7), (4000, 4.1))), "Average loss", [2000, 4000], [4.7, 4.1]),
    "a loss of an epoch of several": ("".join(f"Training loss for epoch {i}/3: {x}\n" for i, x in ((1, 4.7), (2, 4.1))), "Training loss", [1, 2], [4.7, 4.1]),
    "names and values in cells": ("".join(f"epoch,{i},loss,{x},acc,0.5\n" for i, x in ((1, 4.7), (2, "nan"))), "loss", [1, 2], [4.7, math.nan]),
    "a fitted objective behind a rate": ("".join(f"  epoch 0 step {i} lr 0.001 logloss {x} auc 0.71 gN 0.28, Mon Jan  3 17:12:50 2022\n" for i, x in ((100, 0.37), (200, 0.19))), "logloss", [100, 200], [0.37, 0.19]),
    "a count before its name": ("".join(f"| epoch 000 | 000{n}000 updates | words/s    4328| trainloss     {x} | train ppl   420.34\n" for n, x in ((1, 8.72), (2, 6.91))), "trainloss", [1000, 2000], [8.72, 6.91]),
    "the table of MATLAB": (
        "|======================================================================================|\n"
        "|  Epoch  |  Iteration  |  Time Elapsed  |  Mini-batch  |  Mini-batch  |  Base Learning  |\n"
        "|         |             |   (hh:mm:ss)   |   Accuracy   |     Loss     |      Rate       |\n"
        "|======================================================================================|\n"
        "|       1 |           1 |       00:00:00 |        7.81% |       2.7155 |          0.0100 |\n"
        "|       2 |          50 |       00:00:07 |       73.44% |       0.8278 |          0.0100 |\n",
        "Mini-batch Loss", [1, 50], [2.7155, 0.8278],
    ),
    "lists of the terms of a loss": (
        "Step      Train loss              Test loss               Test metric\n"
        "0         [1.0e+02, 2.5e+01]    [1.42e+02, 3.43e+04]    []  \n1000      [1.0e+00, 2.5e-01]    [7.0e+01, 5.0e+02]    []  \n",
        "train loss", [0, 1000], [125.0, 1.25],
    ),
    "letters of two networks": ("".join(f"[{e}/5] [{i}/100] D: {x} G: 2.2\n" for e, i, x in ((0, 0, 1.2), (0, 50, 1.1), (1, 0, 1.3))), "D_loss", [0, 50, 100], [1.2, 1.1, 1.3]),
    # name: (lines, name of the loss, its steps, its values)
    "tinygrad: a value before its name": (
        "    1 93.44 s run, 11.8750 loss, 0.000000000001 LR, 642.43 GB used,  19644.30 GFLOPS\n"
        "    2 101.78 s run, 11.7500 loss, 0.000000000001 LR, 1454.57 GB used,  17039.35 GFLOPS\n"
        "    3 7.34 s run, 11.5000 loss, 0.000000000002 LR, 1454.57 GB used, 236258.78 GFLOPS\n",
        "loss", [1, 2, 3], [11.875, 11.75, 11.5],
    ),
    "kaldi's nnet3 maximises": (
        "LOG (nnet3-train:PrintStatsForThisPhase():nnet-training.cc:121) Average \nobjective function for 'output' for minibatches 40-49 is -3.5 over \n19538 frames.\n"
        "LOG (nnet3-train:PrintStatsForThisPhase():nnet-training.cc:121) Average \nobjective function for 'output' for minibatches 50-59 is -3.25 over \n19423 frames.\n",
        "output/negative_objective", [49, 59], [3.5, 3.25],
    ),
    "kaldi's python maximises": (
        "2020-02-10 15:33:21,061 (train.py:120) INFO: Process 10/100 average objf: -3.5 over 12800 frames, current batch objf: -3.4 over 128 frames, epoch 0\n"
        "2020-02-10 15:33:22,061 (train.py:120) INFO: Process 20/100 average objf: -3.25 over 25600 frames, current batch objf: -3.1 over 128 frames, epoch 0\n",
        "negative_objective", [10, 20], [3.5, 3.25],
    ),
    "seconds of a batch, and their mean": (
        "INFO:main-logger:Epoch: [1/120][180/3368] Data 0.002 (0.574) Batch 0.818 (3.887) Remain 436:08:39 Loss 11.87 Accuracy 0.3469.\n"
        "INFO:main-logger:Epoch: [1/120][190/3368] Data 0.001 (0.555) Batch 2.720 (3.896) Remain 437:11:12 Loss 12.89 Accuracy 0.2397.\n",
        "Loss", [180, 190], [11.87, 12.89],
    ),
    "batches without a total, of two epochs": (
        "batch 400 with 32 instance and sentece length 25 loss 3.87\nbatch 500 with 32 instance and sentece length 23 loss 4.68\nEpoch:  7\n"
        "batch 0 with 32 instance and sentece length 16 loss 3.91\nbatch 50 with 32 instance and sentece length 12 loss 2.88\n",
        "loss", [400, 500, 600, 650], [3.87, 4.68, 3.91, 2.88],
    ),
    "lightgbm in r": (
        "[5]:    train's l2:0.0950    valid's l2:0.1003\n[6]:    train's l2:0.0945    valid's l2:0.1000\n[7]:    train's l2:0.0939    valid's l2:0.0996\n",
        "train's l2", [5, 6, 7], [0.095, 0.0945, 0.0939],
    ),
    "lightgbm in python": (
        "[20]\ttraining's l2: 0.0757\tvalid_1's l2: 0.2526\n[40]\ttraining's l2: 0.0702\tvalid_1's l2: 0.2535\n[100] training's l2: 0.0565\tvalid_1's l2: 0.2570\n",
        "training's l2", [20, 40, 100], [0.0757, 0.0702, 0.0565],
    ),
    "xgboost below a clock": (
        "[20:07:36] [106]        test-error:0.027192     train-error:0.010225\n[20:07:36] boosting round 107, 402.286 sec elapsed\n"
        "[20:07:40] [107]        test-error:0.027190     train-error:0.010220\n[20:07:40] boosting round 108, 406.195 sec elapsed\n",
        "train-error", [106, 107], [0.010225, 0.01022],
    ),
    "keras from the end of an epoch on": (
        f"1875/1875 {BAR} - 30s 16ms/step - loss: 0.0798 - acc: 0.97 - val_loss: 14.2\nEpoch 16/30\n"
        f"1875/1875 {BAR} - 29s 16ms/step - loss: 0.0745 - acc: 0.97 - val_loss: 7.9\nEpoch 17/30\n"
        f"1875/1875 {BAR} - 30s 16ms/step - loss: 0.0741 - acc: 0.97 - val_loss: 7.8\n",
        "loss", [15, 16, 17], [0.0798, 0.0745, 0.0741],
    ),
    "keras without steps, from the end of an epoch on": (
        "1s - loss: 0.753 - acc: 0.5\nEpoch 2/1000\n0s - loss: 0.752 - acc: 0.6\nEpoch 3/1000\n0s - loss: 0.751 - acc: 0.6\n",
        "loss", [1, 2, 3], [0.753, 0.752, 0.751],
    ),
    "keras' bar at its beginning": (
        " 58/574 [==>...........................] - ETA: 3s - loss: 9.65\n 66/574 [==>...........................] - ETA: 3s - loss: 9.05\n 74/574 [===>..........................] - ETA: 3s - loss: 8.47\n",
        "loss", [58, 66, 74], [9.65, 9.05, 8.47],
    ),
    "deepspeech: the steps of an epoch are always the same": (
        "Epoch 65 |   Training | Elapsed Time: 0:10:10 | Steps: 18595 | Loss: 116.30\nEpoch 66 |   Training | Elapsed Time: 0:10:02 | Steps: 18595 | Loss: 114.97\nEpoch 67 |   Training | Elapsed Time: 0:09:59 | Steps: 18595 | Loss: 112.70\n",
        "Loss", [65, 66, 67], [116.3, 114.97, 112.7],
    ),
    "deepspeech: one epoch": (
        "2016-11-25 17:41:55 STARTING Epoch 0009\n2016-11-25 17:41:55 Training model...\n2016-11-25 18:29:38 Training loss=inf avg_cer=0.3777 WER: 0.8284\n",
        "Training loss", [9], [math.inf],
    ),
    "tianshou": (
        "Epoch #1: 50001it [00:40, 1244.54it/s, env_step=50000, len=200, loss=-0.562, loss/vf=0.044, rew=200.00]\nEpoch #1: test_reward: 200.000000 ± 0.000000, best_reward: 200.000000 ± 0.000000 in #1\n"
        "Epoch #2: 50001it [00:40, 1237.34it/s, env_step=100000, len=200, loss=-0.023, loss/vf=0.001, rew=200.00]\nEpoch #2: test_reward: 200.000000 ± 0.000000, best_reward: 200.000000 ± 0.000000 in #1\n",
        "loss", [50_000, 100_000], [-0.562, -0.023],
    ),
    "a bar of a share without its picture": (
        "Epoch 0:  97% 1651/1702 [13:00<00:24,  2.11it/s, loss=0.158, v_num=0, train_loss=0.149]\nEpoch 0:  97% 1652/1702 [13:01<00:23,  2.11it/s, loss=0.157, v_num=0, train_loss=0.148]\n",
        "train_loss", [1651, 1652], [0.149, 0.148],
    ),
    "a unit before a name": (
        "INFO:tensorflow:Step 200 per-step time 0.831s loss=1.192\nI0912 11:41:51.976096 1397354 model_lib_v2.py:652] Step 200 per-step time 0.831s loss=1.192\n"
        "INFO:tensorflow:Step 300 per-step time 0.844s loss=1.146\nI0912 11:43:14.231966 1397354 model_lib_v2.py:652] Step 300 per-step time 0.844s loss=1.146\n",
        "loss", [200, 300], [1.192, 1.146],
    ),
    "what somebody wrote behind a line": (
        "{'loss': 1.46,  'grad_norm':    14.98}\n{'loss': 1.28,  'grad_norm':     9.78}\n{'loss': 1.14,  'grad_norm':    92.10}    <-- spike #1 (step 4)\n{'loss': 1.54,  'grad_norm':    29.00}    <-- step 5\n",
        "loss", [0, 1, 2, 3], [1.46, 1.28, 1.14, 1.54],
    ),
    "keras-rl: the steps of an episode are none": (
        "  8996/50000: episode: 63, duration: 4.336s, episode steps: 127, steps per second: 29, loss: 8734.28\n  9140/50000: episode: 64, duration: 4.841s, episode steps: 144, steps per second: 30, loss: 8017.92\n"
        "  9340/50000: episode: 65, duration: 6.725s, episode steps: 144, steps per second: 30, loss: 7685.80\n",
        "loss", [63, 64, 65], [8734.28, 8017.92, 7685.8],
    ),
    "mxnet: the mean of an epoch is NaN": (
        "Epoch[4] Batch [2140] Speed: 6.44 samples/sec Train-CrossEntropy=0.589\nEpoch[4] Batch [2140] Speed: 6.44 samples/sec Train-SmoothL1=1.534\nEpoch[4] Train-CrossEntropy=nan\nEpoch[4] Train-SmoothL1=nan\n",
        "Train-CrossEntropy", [2140, 2140], [0.589, math.nan],
    ),
    "an unprefixed loss beside that of a validation": (
        "Epoch=1,Loss:0.44,Accuracy:0.76,Valid Loss:0.32,Valid Accuracy:0.86\nEpoch=2,Loss:0.24,Accuracy:0.90,Valid Loss:0.35,Valid Accuracy:0.85\n",
        "Loss", [1, 2], [0.44, 0.24],
    ),
    "a step of a total, and its share": (
        "Epoch 11, step/total_step: 5/60 8.33% Loss:5.99\nEpoch 11, step/total_step: 10/60 16.67% Loss:3.62\nEpoch 11, step/total_step: 15/60 25.00% Loss:2.98\n",
        "Loss", [5, 10, 15], [5.99, 3.62, 2.98],
    ),
    "an update is no count": (
        "Lr: 9.9e-03 | Update: 5.8e-04 mean,9.4e-04 std | Epoch: [1][900/1047] | Time 2.6 (2.3) | Loss 0.6088 (0.6583) | acc 0.95\n"
        "Lr: 9.9e-03 | Update: 4.1e-04 mean,6.5e-04 std | Epoch: [1][910/1047] | Time 2.0 (2.3) | Loss 0.5004 (0.6572) | acc 0.99\n",
        "Loss", [900, 910], [0.6088, 0.5004],
    ),
    "the mean over batches": (
        "Training epoch: 26\n \tMean training loss: 0.52.  Mean training acc: 83.2%.\nEval epoch: 26\n \tMean test loss of 258 batches: 0.79.\n"
        "Training epoch: 27\n \tMean training loss: 0.51.  Mean training acc: 83.3%.\nEval epoch: 27\n \tMean test loss of 258 batches: 0.76.\n",
        "Mean training loss", [26, 27], [0.52, 0.51],
    ),
    "tflearn: the samples after the values are no step": (
        "Training Step: 256  | total loss: 0.07474 | time: 19.421s\n| Adam | epoch: 004 | loss: 0.07470 - acc: 0.9941 | val_loss: 0.00234 -- iter: 4045/4045\n"
        "Training Step: 512  | total loss: 0.06474 | time: 19.421s\n| Adam | epoch: 008 | loss: 0.06470 - acc: 0.9941 | val_loss: 0.00204 -- iter: 4045/4045\n",
        "loss", [256, 512], [0.0747, 0.0647],
    ),
    "a total beside a part": (
        "2024-09-10 10:11:04,258 - mmdet - INFO - Iter [100/15000]       lr: 4.6e-05, cls: 2.0250, reg: 8.0096, trans_loss: 0.3656, total: 51.76, grad_norm: 117.7\n"
        "2024-09-10 10:12:00,386 - mmdet - INFO - Iter [200/15000]       lr: 5.9e-05, cls: 1.8068, reg: 3.9424, trans_loss: 0.2620, total: 31.67, grad_norm: 79.9\n",
        "total", [100, 200], [51.76, 31.67],
    ),
    "calls of one epoch each": (
        "".join(f"epoch: {e}\nEpoch 1/1\n512/512 [====] - 0s - loss: {loss}\nEER: 20.47\n" for e, loss in ((0, 0.43), (1, 0.41), (2, 0.39))),
        "loss", [0, 1, 2], [0.43, 0.41, 0.39],
    ),
    "a line break that syslog wrote": (
        "[1,mpirank:0,algo-1]<stdout>:#015Epoch 0:  50% 1/4 [00:00<00:00,  6.54it/s, loss=2.29, v_num=0]\n[1,mpirank:0,algo-1]<stdout>:\n"
        "[1,mpirank:0,algo-1]<stdout>:#015Epoch 0:  50% 2/4 [00:00<00:00,  6.54it/s, loss=2.27, v_num=0]#015Epoch 0:  75% 3/4 [00:00<00:00,  6.54it/s, loss=2.25, v_num=0]\n",
        "loss", [1, 2, 3], [2.29, 2.27, 2.25],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_read(name, tmp_path):
    text, loss, steps, values = SHAPES[name]
    path = tmp_path / "pasted.txt"
    path.write_text(text)
    (run,) = read_log(path).runs
    column = run.of("loss")
    assert column is not None and (column.name, column.steps.tolist()) == (loss, steps)
    assert column.values.tolist() == pytest.approx(values, nan_ok=True)


def test_a_number_within_a_name(tmp_path):
    path = tmp_path / "pasted.txt"
    path.write_text("".join(f"Episode {50 * i:3}/400 | Reward moyen (100 ep): {30 - i}.5\n" for i in range(1, 6)))
    (run,) = read_log(path).runs
    (reward,) = run.columns
    assert (reward.name, reward.steps.tolist()) == ("Reward moyen", [50, 100, 150, 200, 250])


def test_a_single_validation_between_records_is_one(tmp_path):
    path = tmp_path / "pasted.txt"
    path.write_text(
        "{'n_parameters': 12}\n{'loss': 1.8, 'learning_rate': 1e-3}\n{'loss': 1.7, 'learning_rate': 1e-3}\n"
        "{'eval_loss': nan, 'eval_wer': 100.0}\n{'loss': 2.4, 'learning_rate': 1e-3}\n"
    )
    (run,) = read_log(path).runs
    evaluated = run.of("eval_loss")
    assert evaluated is not None and math.isnan(evaluated.values[0]) and len(run.steps) == 3


def test_a_nan_that_is_printed_twice_at_a_step_is_one_record(tmp_path):
    path = tmp_path / "pasted.txt"
    path.write_text("Iteration 0, loss = 2.3\nIteration 100, loss = nan\n    Train net output #0: loss = -nan\n")
    (run,) = read_log(path).runs
    loss = run.of("loss")
    assert loss is not None and loss.steps.tolist() == [0, 100]


def test_batches_of_epochs_count_on_without_a_loss(tmp_path):
    path = tmp_path / "wenet.txt"
    batches = [(epoch, batch) for epoch in range(3) for batch in range(0, 500, 100)]
    lines = (f"DEBUG TRAIN Batch {e}/{b} loss {9 - e - b / 1000:.3f} loss_ctc 26.4 rank 0" for e, b in batches)
    path.write_text("\n".join(lines) + "\n")
    (run,) = read_log(path).runs
    loss = run.of("loss")
    assert loss is not None and loss.steps.tolist() == list(range(0, 1500, 100))


def test_scores_of_all_classes_belong_to_their_epoch(tmp_path):
    path = tmp_path / "pasted.txt"
    path.write_text(
        "      Epoch    GPU_mem   box_loss   cls_loss   dfl_loss  Instances       Size\n        6/99      5.66G      7.085      13.34      5.611         11        640: 100%|███| 30/30 00:12\n"
        "                 Class     Images  Instances          P          R      mAP50   mAP50-95: 100%|███| 15/15 00:02\n                   all         59        449      0.012      0.034      0.005      0.001\n"
        "        7/99      5.66G      7.035      13.30      5.601         12        640: 100%|███| 30/30 00:12\n                   all         59        449       0.02       0.04      0.006      0.002\n"
    )
    (run,) = read_log(path).runs
    scores = {c.name: (c.steps.tolist(), c.values.tolist()) for c in run.columns if c.name.startswith("val/m")}
    assert scores == {"val/mAP50": ([6, 7], [0.005, 0.006]), "val/mAP50_95": ([6, 7], [0.001, 0.002])}


def test_blocks_are_counted_by_one_key(tmp_path):
    path = tmp_path / "sb3.txt"
    path.write_text(
        "|    loss                 | 0.0912     |\n|    n_updates            | 30         |\n|    value_loss           | 0.757      |\n"
        "----------------------------------------\n----------------------------------------\n| time/                   |            |\n"
        "|    iterations           | 5          |\n|    total_timesteps      | 122880     |\n| train/                  |            |\n"
        "|    loss                 | 0.0491     |\n|    n_updates            | 40         |\n|    value_loss           | 0.61       |\n"
        "----------------------------------------\n"
    )
    (run,) = read_log(path).runs
    loss = run.of("loss")
    assert loss is not None and loss.steps.tolist() == [30, 40]


def test_scores_of_one_line_without_breaks(tmp_path):
    path = tmp_path / "psnr.txt"
    path.write_text("===> " + "===> ".join(f"Avg. PSNR: {19 + n / 10:.4f} dB" for n in range(40)) + "\n")
    (column,) = read_log(path).runs[0].columns
    assert column.values.tolist() == [round(19 + n / 10, 4) for n in range(40)]


def test_counts_above_the_terms_of_a_loss(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text(
        "".join(f"Iter[{i}/20], Epoch [1/1]\nLrec: {x}, Ladv: 0.9, Lsty: 1068.0\n" for i, x in ((1, 0.21), (2, 0.24)))
    )
    (run,) = read_log(path).runs
    assert [c.name for c in run.columns] == ["Lrec", "Ladv", "Lsty"]
    assert (run.columns[0].steps.tolist(), run.columns[0].values.tolist()) == ([1, 2], [0.21, 0.24])
