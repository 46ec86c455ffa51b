"""Excerpts of a few lines as people paste them, and what is said of them; healthy look-alikes beside each."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import pytest

from stabwatch.analysis import analyze
from stabwatch.errors import LogError


def _lines(form: str, rows) -> str:
    return "".join(form.format(*row) + "\n" for row in rows)


CAFFE = "I0521 10:12:{0:02}.123456 12345 solver.cpp:237] Iteration {1}, loss = {2}"
ROWS = "2022-05-08 16:27:{0:02},927 {1} 0.00 {2} 0.41 {2} 0.00 0.00 ---- ----"
DEEPSPEED = (
    "[total_loss: {1} | value_loss: {2}]:  16%|####      | {0}/6400 [1:16:09<1:07:04,  1.33it/s]"
    "[2023-02-28 20:08:24,113] [INFO] [stage_1_and_2.py:1769:step] [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: {3}, reducing to {4}"
)
GRPO = "{{'loss': 0.0, 'grad_norm': {0}, 'learning_rate': {3}e-06, 'reward': {1}, 'reward_std': {2}, 'kl': 0.0}}"
A2C = "iteration {0} | reward: {1} | entropy: {2} | policy_loss: 0.0000 | value_loss: {3}"
LM = "| epoch   1 | {0:5}/ 2983 batches | lr 20.00 | ms/batch 12.22 | loss {1} | ppl {2:>8}"
EPOCH = "Epoch {0}: train_loss: {1} val_loss: {2}"
MMDET = "2022-01-17 22:{0}:44,113 - mmdet - INFO - Epoch [{1}][{2}/500]\tlr: 1.000e-04, eta: 0:00:22, time: 0.4, loss_cls: {3}, loss_bbox: 0.01, loss: {4}"
MMDET_CUT = "2022-01-17 22:44:44,113 - mmdet - INFO - Epoch [{0}][{1}/500]\tlr: 1.000e-04, eta: 0:00:22, time: 0.4, loss_cls: {2}, loss_b"
MMDET_VAL = (
    "2022-01-17 22:30:44,113 - mmdet - INFO - Epoch(val) [{0}][100]\tbbox_mAP: {1}, bbox_mAP_50: {1}, bbox_mAP_75: {1}"
)
TRPO = (
    "********** Iteration {0} ************\n| EpRewMean       | {1}          |\n| entropy         | {2}          |\n"
    "| meankl          | {3}          |\n| surrgain        | 0.02         |\n----------------------------------"
)
SCORES = "Train performance at epoch {0} is precision: {1}, recall: {1}, fscore: {1}, right: 0, predict: 0.\nLoss is: {2}.\nEpoch {0} cost time: 273 second"
DETECTS = MMDET.format(29, 12, 450, 0.02, 0.03) + "\n"
KERAS = "Epoch {0}/30\n200/200 [==============================] - 4883s 24s/step - loss: {1} - accuracy: {2}"
UDACITY = "Loss at step {0}: {1}\nTraining accuracy: {2:.1f}%"
NNUNET = (
    "2024-06-12 18:20:21.625154: Epoch {0} \n2024-06-12 18:26:16.488273: train_loss {1} \n"
    "2024-06-12 18:26:16.493741: val_loss {2} \n2024-06-12 18:26:16.497657: Pseudo dice [{3}, {3}] "
)
GAN = "Epoch: [ 2/200] [{0:4}/ 400] time: 101.3380, d_loss: {1}, g_loss: {2}"
WAVEGLOW = "step_{0}:\tloss_{1}"
DCGAN = "[{0}/20][{1}/32]\tLoss_D: {2}\tLoss_G: {3}\tD(x): {4}\tD(G(z)): {5} / 0.0000"
RSL_RL = (
    "                     Learning iteration {0}/10000                      \n\n"
    "               Value function loss: {1}\n                    Surrogate loss: -0.0030\n"
    "                       Mean reward: {2}\n               Mean episode length: 896.92"
)
TF_OBJECT = "INFO:tensorflow:global step {0}: loss = {1} (6.596 sec/step)\nINFO:tensorflow:global step {0}: loss = {1} (6.596 sec/step)"
KERAS_BAR = "{0}/511502 [==>...........................] - ETA: 63s - loss: {1}"
DEPTH = "Epoch: 0{0} - 025\n [=========>]  St 6057/6057  Tot: 41m50s | Rem: 10h28s | Depth Loss: {1} ({2})9)\n [=== 654/654 ===>]  Step: 05{3}ms | Tot: 35s649ms | Rem: 08m34s"
EVALUATED = "step {0}: train loss {1}, val loss {2}"
FAIRSEQ_EPOCH = "| epoch 0{0} | loss {1} | nll_loss 4.984 | ppl 31.65 | num_updates {2} | lr 0.0006 | gnorm 0.390 | loss_scale {3} | wall 23080"
GAN_EPOCH = "epoch: {0},  G_loss: {1},  D_loss: {2}"
SEGAN = "(Iter {0}) Batch {0}/9000 (Epoch 1) d_real:{1}, d_fake:{2}, g_adv:{3}, g_l1:{4} l1_w: 100.00, btime: 0.38 s"
NO_NAME = "Epoch {0}/9\n1/1 [==============================] - 8s 8s/step - loss: {1} - accuracy: {2} - val_loss: {3} - val_accuracy: 0.25"
FALLS = [(29, 1, 50, 1.2, 2.31), (30, 1, 100, 1.1, 2.11), (31, 1, 150, 1.05, 2.01)]

TROUBLE = {
    "a loss of -ln of the smallest float": (_lines(CAFFE, [(i, 20 * i, 87.3365) for i in (1, 2, 3)]), "NotLearning", 20),
    "the same after others": (_lines(CAFFE, [(1, 0, 70.1), (2, 20, 60.2), (3, 40, 87.3365), (4, 60, 87.3365)]), "NotLearning", 40),
    "columns without names": (_lines(ROWS, [(i, 17940 + 2 * i, "nan") for i in range(4)]), "NonFinite", 17940),
    "a worn loss scale, and the loss rises": (_lines(DEEPSPEED, [(1024, 1.64, 7.6, 256, 128), (1044, 1.34, 8.6, 128, 64), (1045, 4.35, 21.9, 64, 32)]), "LossScaleCollapse", 1024),
    "one reward for all": (_lines(GRPO, [(0.0, -0.3333333432674408, 0.0, i) for i in range(1, 5)]), "NotLearning", 0),
    "one reward, and no entropy": (_lines(A2C, [(10 * i, -200.0, "0.0000", 13 - i) for i in range(1, 6)]), "NotLearning", 10),
    "an infinite perplexity": (_lines(LM, [(200, 812.33, "inf"), (400, 901.33, "inf"), (600, 877.12, "inf")]), "NonFinite", 200),
    "evaluation far above training": (_lines(EPOCH, [(1, 0.69, 88.3), (2, 0.51, 120.3), (3, 0.40, 97.2), (4, 0.33, 210.1)]), "EvaluationApart", 1),
    "a single mAP of 0, late": (DETECTS + MMDET_VAL.format(12, "0.0000") + "\n", "NotLearning", 450),
    "no right answer in two epochs, and the loss rises": (_lines(SCORES, [(1, "0.000000", 0.276), (2, "0.000000", 0.285)]), "NotLearning", 1),
    "an explosion in the last record": (_lines(MMDET, [*FALLS, (32, 1, 200, 3.1e6, 3848123.2)]), "LossSpike", 200),
    "a line that is cut before the loss": (_lines(MMDET, FALLS) + MMDET_CUT.format(1, 200, 1843.2) + "\n", "LossSpike", 200),
    "the divergence of one update": (_lines(TRPO, [(0, 18.0, 0.68, 0.0017), (1, 28.0, 0.48, 0.17), (2, 9.0, 0.02, 4.5)]), "KLRunaway", 2),
    "a step that is a total": (_lines("epoch: 0, total_step: {0}, loss: {1}, lr: 0.001", [(100, 2.3), (200, 2.1), (300, "nan")]), "NonFinite", 300),
    "a lone block of Coqui": ("   --> STEP: 124/406 -- GLOBAL_STEP: 1124\n     | > decoder_loss: 2.21345  (2.61234)\n     | > loss: nan  (nan)\n     | > grad_norm: 2.11  (3.22)\n", "NonFinite", 1124),
    "fairseq's rows of a validation": (
        '2021-05-01 10:11:12 | INFO | train_inner | {"epoch": 1, "loss": "9.1", "num_updates": "100", "lr": "1e-05"}\n'
        '2021-05-01 10:13:12 | INFO | valid | {"epoch": 1, "valid_loss": "8.0", "valid_num_updates": "150"}\n'
        '2021-05-01 10:14:12 | INFO | train_inner | {"epoch": 2, "loss": "7.1", "num_updates": "300", "lr": "3e-05"}\n'
        '2021-05-01 10:15:12 | INFO | valid | {"epoch": 2, "valid_loss": "nan", "valid_num_updates": "350"}\n',
        "NonFinite", 350,
    ),
    "the validation gives one answer": (_lines("Epoch {0}: train_loss: {1} val_loss: 0.66 val_accuracy: 0.5676", [(i, round(0.6 - i / 10, 2)) for i in range(1, 6)]), "EvaluationApart", 1),
    "a list that ends with its step": (_lines("INFO:base:[nan, nan, 8{0}.04302978515625, 0.9, 2{0}00, 0.00019]", [(i,) for i in range(4, 8)]), "NonFinite", 2400),
    "the mean of three statistics": ("Epochs:[1]/[25]\n" + _lines("train loss (min, avg, max): ({0}, nan, 1152.6)\nEpochs:[{1}]/[25]", [(-0.2, 2), (0.1, 3), (0.3, 4)]), "NonFinite", 1),
    "the lines of a tutorial": (_lines("{0} {1}% ({2}) {3} Nam / Russian", [(5000, 5, "0m 12s", 2.41), (10000, 10, "0m 21s", 2.58), (15000, 15, "1m 4s", "nan"), (20000, 20, "1m 13s", "nan")]), "NonFinite", 15000),
    "an error in words that is a value": (_lines("== EPOCH:  {0} / 5  ==\nTraining with  59951 / 60000\nError:  nan", [(1,), (2,), (3,)]), "NonFinite", 1),
    "the names of YOLACT": ("Warning: Moving average ignored a value of nan\n[ 13]  1950 || B: 2136044957.000 | C: 10709.000 | M: 18.3 | S: 23.1 | T: 22431428.000 || ETA: 2 days, 14:20:59 ||\n", "NonFinite", 1950),
    "darknet of another year": (_lines("{0}: {1}, {1} avg, 0.001000 rate, 1.947555 seconds, 6072 images", [(1011, 11.2), (1012, 11.3), (1013, "-nan")]), "NonFinite", 1013),
    "a bar between a name and its value": (_lines("Step  {0}: Ran 1000 train steps in 1182.59 secs\nStep  {0}: train CrossEntropyLoss |  {1}", [(1000, 2.5), (2000, "nan")]), "NonFinite", 2000),
    "a summary of NaN": ("global step 10: loss = 8.5 (0.05 sec/step)\nglobal step 11: loss = 8.4 (0.05 sec/step)\n2017-11-10 10:12:11.09: W op_kernel.cc:1192] Invalid argument: Nan in summary histogram for: Conv2d_0/weights\n", "NonFinite", 11),
    "the score of deeplearning4j": (_lines("09:54:37.023 [main] INFO  o.d.o.l.ScoreIterationListener - Score at iteration {0} is {1}", [(20, 2.1), (40, 1.9), (60, "NaN")]), "NonFinite", 60),
    "every word is wrong": ("Step | Training Loss | Validation Loss | Wer\n-- | -- | -- | --\n" + _lines("{0} | {1} | 4.5{0} | 1.000000", [(400, 5.06), (800, 5.11), (1200, 5.12)]), "NotLearning", 400),
    "a worn scale in its column, and the loss rises": (_lines(" iteration      {0}/  250000 | lm loss: {1} | loss scale: {2} | number of skipped iterations:   1 |", [(100, 2.5, 128.0), (101, 2.4, 128.0), (102, 6.5, 64.0), (103, 7.5, 32.0)]), "LossScaleCollapse", 102),
    "one reward for all, of which the extremes are told": (_lines("step:{0} - critic/rewards/mean:-0.333 - critic/rewards/max:-0.333 - critic/rewards/min:-0.333 - actor/pg_loss:0.0 - actor/grad_norm:0.0", [(1,), (2,), (3,)]), "NotLearning", 1),
    "an infinite perplexity of a validation": (_lines("| end of epoch   {0} | time: 21.2s | valid loss {1} | valid ppl      inf", [(1, 812.1), (2, 901.1), (3, 951.1)]), "NonFinite", 1),
    "two validations a hundred times above": (_lines(EPOCH, [(1, 0.69, 88.3), (2, 0.51, 120.3)]), "EvaluationApart", 1),
    "loss and accuracy from the second epoch": (_lines(KERAS, [(1, 5.7178, 0.6446), *((n, 5.7257, 0.6448) for n in range(2, 6))]), "NotLearning", 1),
    "guessing in all epochs": (_lines(KERAS, [(n, x, 0.5) for n, x in enumerate((0.7078, 0.6959, 0.6947, 0.6857, 0.6896, 0.6957, 0.6945), 1)]), "NotLearning", 1),
    "a loss that is never below its first": (_lines(UDACITY, [(100 * n, x, 9.7 + n / 10) for n, x in enumerate((24.6, 35.4, 38.7, 30.1, 35.9, 38.6, 31.4, 42.1, 26.8))]), "NotLearning", 0),
    "both losses rise in the last epoch": (_lines(NNUNET, [(0, 0.36, 0.33, 0.5), (1, 0.12, 0.48, 0.6), (2, 0.59, 3.63, 0.1)]), "LossDivergence", 2),
    "no overlap after a hundred epochs": (_lines(NNUNET, [(99, -0.341, -0.371, 0.0), (100, -0.366, -0.383, 0.0)]), "NotLearning", 99),
    "no text found after all epochs": (_lines("[2021/02/28 15:05:1{0}] root INFO: epoch: [500/500], iter: 449{0}, lr: 0.001000, loss: 0.0114, dice_loss: 0.0034", [(1,), (3,)]) + "[2021/02/28 15:05:17] root INFO: best metric, hmean: 0\n", "NotLearning", 4493),
    "a generator that is believed": (_lines(GAN, [(n, 60 + n, "0.00000000") for n in range(6)]), "DiscriminatorCollapse", 0),
    "a distance without a bound": ("[8/20][100/782] d_loss: -561234567.2 g_loss: 2.1 gp: 0.1\n", "LossDivergence", 100),
    "a value beyond the rewards": (_lines(RSL_RL, [(3097, 22878095257.6, 24775.79)]), "LossDivergence", 3097),
    "the letters of two networks": (_lines("  0%|#     | {0}/1000000 [12:45:01<5106:48:53, 18.43s/it]G: nan | MSG: nan | D: nan | GP: 10.00", [(2400,), (2420,)]), "NonFinite", 2400),
    "a discriminator whose loss ends at nothing": (_lines(GAN_EPOCH, [(10 * n, 6 + n, f"{10.0 ** -n / 250:.6f}") for n in range(9)]), "DiscriminatorCollapse", 20),
    "a discriminator of exactly 0 in whole epochs": (_lines("Epoch {0}/200 | train: {1} | d_loss: {2} | val: 0.0007", [(1, 0.00074, 1.2665), (180, 0.0074, "0.000000"), (200, 0.0079, "0.000000")]), "DiscriminatorCollapse", 180),
    "two parts of a discriminator that are nothing": (_lines(SEGAN, [(50 * n, *(("0.0650", "0.1554", 0.75) if n < 8 else ("0.0000", "0.0001", 1 - n % 3 / 1000)), round(3 - n / 20, 2)) for n in range(1, 40)]), "DiscriminatorCollapse", 400),
    "outputs that are exactly 0 or 1": (_lines(KERAS, [(n, round(15.3332 * (1 - x), 4), x) for n, x in enumerate((0.5003, 0.4981, 0.5012, 0.4999, 0.5), 1)]), "NotLearning", 1),
    "a loss of 0 in the first epochs": (_lines("12 Nov 21:1{0} INFO epoch {0} training [time: 16.26s, train loss: 0.0000]", [(n,) for n in range(3)]), "LossTooGood", 0),
    "both losses jump in the second epoch of two, in a comment": (_lines(NO_NAME, [(1, 1.03, 0.6, 5.6), (2, 7.36, 0.8, 49.9)]).replace("Epoch", "#Epoch").replace("1/1 [", "#1/1 ["), "LossDivergence", 2),
    "a discriminator that is certain": (_lines(DCGAN, [(0, 0, 1.8, 8.1, 0.4317, 0.3617), *((1, 10 * i, "0.0000", 57.1, "1.0000", "0.0000") for i in range(4))]), "DiscriminatorCollapse", 32),
    "an objective that explodes": (_lines("iter:{0:05} sq. rec. err:  0.79; obj:{1};", [(2, " 0.8761"), (3, "  1.514"), (4, "  1.649"), (5, "  2.981"), (6, "  14.77"), (7, "1.6e+11"), (8, "    Inf"), (9, "    NaN")]), "NonFinite", 8),
    "a quoted objective": ("> obj_dil_seg32x: NaN obj_ero_seg32x: NaN objective_32x: NaN\n", "NonFinite", 0),
    "one answer while the loss stays": (_lines("Epoch: 0{0} | Epoch Time: 0m 57s\n*******train_loss,train_acc,valid_loss,valid_ac********** \n{1}\t{2}\t4.977107011354887\t3.6057692021131516", [(i, x, y) for i, x, y in ((1, 5.200893470219204, 2.79), (2, 5.085730476038797, 2.28), (3, 5.019492668764932, 2.91), (4, 5.0052995937211175, 3.57), (5, 5.003523528575897, 3.23))]), "EvaluationApart", 1),
    "one answer after the first epoch, below zero": (" Epoch  |  Train loss  |  Valid loss  |  Valid acc  |  Dur\n--------|--------------|--------------|-------------|-------\n" + _lines("     {0}  |   {1}  |   {1}  |     {2}%  |  0.6s", [(1, "     nan", 47.83), *((n, f"-{n}.617792", 52.17) for n in range(2, 8))]), "EvaluationApart", 2),
    "a loss and a norm that jump together": (_lines(MMDET + ", grad_norm: {5}", [(30, 1, 1020, 0.5, 2.32, 4.7), (31, 1, 1050, 0.6, 50.4, 8794.3), (32, 1, 1080, 0.5, 2.53, 24.2)]), "LossSpike", 1050),
    "a record a hundred times the spread": (_lines(WAVEGLOW, [(78540 + 20 * i, x) for i, x in enumerate(("-4.065555573", "-4.490265846", "-4.454271317", "-4.322495461", "4191.683593750", "-2.408614397", "-2.908127546"))]), "LossSpike", 78620),
    "an explosion in words": ("Step   67456 [1.078 sec/step, loss=6.73029, avg_loss=6.65925]\nLoss exploded to 378655.87500 at step 67465!\n", "NonFinite", 67465),
    "records out of all proportion": (_lines(TF_OBJECT, [(1400, 5.1e15), (1401, 0.0812), (1402, 0.0731), (1403, 2.2e15), (1404, 0.0654), (1405, 0.0711), (1406, 0.0603)]), "LossSpike", 1400),
    "the same below zero": (_lines(KERAS_BAR, [(66496, 8.21), (66528, "-104433556137039776.0000"), (345664, 8.31), (345696, "-29342531075525840.0000")]), "LossSpike", 66528),
    "a bar that tells the time of a step": (_lines(DEPTH, [(9, 0.1261, 0.0447, 2), (10, 0.1365, 0.0431, 3), (11, "nan", "nan", 1)]), "NonFinite", 11),
    "both losses jump in one evaluation": (_lines(EVALUATED, [(0, 10.9, 10.9), *((2000 * i, x, y) for i, (x, y) in enumerate(((3.1, 3.2), (2.4, 2.5), (2.1, 2.2), (4.6, 4.7), (2.0, 2.1), (1.9, 2.0), (1.9, 2.0)), 1))]), "LossSpike", 8000),
    "a scale far below 1": (_lines(FAIRSEQ_EPOCH, [(53, 11.5, 20198, 0.016)]), "LossScaleCollapse", 20198),
    "a dozen times the loss in two records": (_lines(MMDET, [(29, 1, 50, 1.2, 21.3), (30, 1, 100, 1.1, 301.2)]), "LossSpike", 100),
    "the largest gradient": (_lines("Epoch 1/2, Steps:   0%|     | {0}/2808 [00:43<10:22:02, 13.31s/it, grad_absmax=-inf", [(3,), (4,), (5,)]), "NonFinite", 3),
}  # fmt: skip

CALM = {
    "the first loss of Caffe": _lines(CAFFE, [(1, 0, 87.3365), (2, 20, 7.2), (3, 40, 6.9), (4, 60, 6.8)]),
    "columns without names and NaN": _lines(ROWS, [(i, 17940 + 2 * i, 0.6 - i / 100) for i in range(4)]),
    "a scale that is probed": _lines(DEEPSPEED, [(1024, 1.64, 7.6, 65536, 32768), (1044, 1.34, 8.6, 32768, 16384)]),
    "a worn scale, and the loss stays": _lines(DEEPSPEED, [(1024, 1.64, 7.6, 256, 128), (1045, 1.35, 8.9, 128, 64)]),
    "every answer is right": _lines(GRPO, [(0.0, 1.0, 0.0, i) for i in range(1, 5)]),
    "rewards differ later": _lines(GRPO, [(0.0, 0.0, 0.0, 1), (0.0, 0.0, 0.0, 2), (0.4, 0.1, 0.2, 3), (0.3, 0.2, 0.3, 4)]),
    "a policy that has learned": _lines(A2C, [(1000 + 10 * i, 500.0, "0.0000", 13 - i) for i in range(1, 6)]),
    "a perplexity that was infinite": _lines(LM, [(200, 95.1, "inf"), (400, 9.1, 8955.29), (600, 8.2, 3640.95)]),
    "the sum of a validation": _lines(EPOCH, [(1, 0.69, 88.3), (2, 0.51, 70.3), (3, 0.40, 67.2), (4, 0.33, 69.1)]),
    "overfitting": _lines(EPOCH, [(1, 0.69, 0.70), (2, 0.31, 0.75), (3, 0.10, 0.92), (4, 0.03, 1.31)]),
    "a single mAP of 0, early": MMDET.format(29, 2, 450, 0.02, 0.03) + "\n" + MMDET_VAL.format(2, "0.0000") + "\n",
    "no right answer in two epochs, and the loss falls": _lines(SCORES, [(1, "0.000000", 0.276), (2, "0.000000", 0.185)]),
    "a line that is cut": _lines(MMDET, FALLS) + MMDET_CUT.format(1, 200, 1.02) + "\n",
    "the divergence of an update": _lines(TRPO, [(0, 18.0, 0.68, 0.0017), (1, 28.0, 0.66, 0.0091), (2, 39.0, 0.62, 0.0102)]),
    "an excerpt that goes up and down": _lines("06-25 09:26:36 Epoch 351 itr {0}/60000: lr: 1.5625e-05 global_loss: 21.4 loss: {1}", [(2100 + i, x) for i, x in enumerate((55.9, 47.1, 47.4, 63.4, 53.0, 57.9, 50.3))]),
    "a training that has learned by heart": _lines("Epoch {0}: train loss {1} train acc: 0.98, val loss: 1.04 val acc 0.72.", [(983 + i, x) for i, x in enumerate((0.093, 0.078, 0.113, 0.118, 0.174, 0.211, 0.159, 0.126, 0.075, 0.096, 0.135, 0.135, 0.158))]),
    "a checkpoint that improved from infinity": "115/115 [====] - 696s 6s/step - loss: 12.97 - val_loss: 11.69\nEpoch 00001: val_loss improved from inf to 11.69414, saving model to models/run1.hdf5\n",
    "every word is wrong at first": "Step | Training Loss | Validation Loss | Wer\n-- | -- | -- | --\n" + _lines("{0} | {1} | 3.1{0} | 1.000000", [(400, 5.06), (800, 3.11), (1200, 2.92)]),
    "a score that falls": _lines("15/09/06 11:15:01 INFO ScoreIterationListener: Score at iteration {0} is {1}", [(i, x) for i, x in enumerate((7.38, 3.9, 2.18, 1.79, 1.86, 4.14, 1.4, 1.35, 0.77))]),
    "rewards whose extremes differ": _lines("step:{0} - critic/rewards/mean:-0.333 - critic/rewards/max:1.0 - critic/rewards/min:-1.0 - actor/pg_loss:0.0 - actor/grad_norm:0.0", [(1,), (2,), (3,)]),
    "a few noisy batches": _lines("2019-10-13 05:41:30 INFO train.py: [8/100], [10/11], step: {0}, batch_loss: {1}, lr:0.0001", [(98, 0.4755), (99, 0.5055), (109, 1.0), (110, 0.6993), (120, 0.3659), (121, 0.4168)]),
    "a window of few batches": "".join(
        f"stage1_loss:     {a}\nstage2_loss:     {b}\n{bar}"
        for a, b, bar in (
            (132.3, 128.0, "  1%|          | 4/516 [00:13<27:49,  3.26s/it]Iter: 3100\n"),
            (5.46, 5.28, " 20%|██        | 104/516 [02:42<10:42,  1.56s/it]Iter: 3200\n"), (131.5, 127.0, ""),
        )
    ),
    "a validation that is a sum": _lines(EPOCH, [(n, 9 - n / 10, 800 + n) for n in range(1, 9)]),
    "all answers of a validation are right": _lines("Epoch {0}: train_loss: {1} val_loss: 0.01 val_accuracy: 1.0000", [(i, round(0.6 - i / 10, 2)) for i in range(1, 6)]),
    "an accuracy that stays while the loss falls": _lines(KERAS, [(n, 0.7 - n / 100, 0.5) for n in range(1, 9)]),
    "a loss that stays while the accuracy rises": _lines(UDACITY, [(100 * n, 2.30 + n % 2 / 100, 9.7 + n) for n in range(9)]),
    "a task that is solved in one epoch": _lines(KERAS, [(1, 0.09, 0.97), *((n, 0.0051, 1.0) for n in range(2, 7))]),
    "overlap that comes late": _lines(NNUNET, [(n, 0.3 - n / 20, 0.31 - n / 20, 0.0 if n < 8 else 0.4) for n in range(10)]),
    "no overlap yet": _lines(NNUNET, [(n, 0.3 - n / 20, 0.31 - n / 20, 0.0) for n in range(8)]),
    "a validation that jumps": _lines(NNUNET, [(0, 0.36, 0.33, 0.5), (1, 0.22, 0.48, 0.6), (2, 0.15, 1.93, 0.1)]),
    "a generator without an adversary yet": _lines(GAN, [(n, "0.00000000", "0.00000000") for n in range(6)]),
    "a generator whose loss is a hinge": _lines(GAN, [(n, 0.4 + n / 100, "0.00000000") for n in range(6)]),
    "a value loss of large rewards": _lines(RSL_RL, [(3097, 132067531.25, 24775.79)]),
    "a discriminator of little loss, and a generator that is near": _lines(GAN_EPOCH, [(10 * n, 0.7, "0.000010") for n in range(9)]),
    "a regression with accuracies": _lines(KERAS + " - val_loss: {3} - val_accuracy: 0.0000e+00", [(n, x, a, v) for n, (x, a, v) in enumerate(((0.158, 0, 0.019), (0.064, 0.01, 0.067), (0.061, 0.01, 0.016), (0.036, 0.01, 0.010), (0.041, 0, 0.013), (0.038, 0.01, 0.029)), 1)]),
    "a hinge loss of 0 in some records": _lines(GAN_EPOCH, [(2 * n, round(9 + 3 * (n % 3) / 2, 3), "0.000000") for n in range(6)]),
    "parts of a discriminator that are small now and then": _lines(SEGAN, [(50 * n, *(("0.0650", "0.1554") if n % 3 else ("0.0000", "0.0001")), 1 - n % 3 / 9, 2) for n in range(1, 40)]),
    "an overconfident model": _lines(KERAS, [(20 + n, round(15.4 * (1 - x), 4), x) for n, x in enumerate((0.951, 0.95, 0.952, 0.951))]),
    "a loss of 0 after many epochs": _lines("12 Nov 21:1{0} INFO epoch 5{0} training [time: 16.26s, train loss: 0.0000]", [(n,) for n in range(3)]),
    "two epochs that go up": _lines(NO_NAME, [(1, 1.03, 0.6, 1.6), (2, 1.96, 0.5, 2.9)]),
    "a discriminator that is ahead": _lines(DCGAN, [(0, 10 * i, 0.3, 4.1, 0.92, 0.08 + i / 100) for i in range(6)]),
    "validations that differ in the last digit": _lines("Epoch {0}: train_loss: {1} val_loss: 0.66 val_accuracy: 0.567{0}", [(i, round(0.6 - i / 100, 2)) for i in range(1, 7)]),
    "a loss that jumps alone": _lines(MMDET + ", grad_norm: {5}", [(30, 1, 1020, 0.5, 2.32, 4.7), (31, 1, 1050, 0.6, 9.4, 8.3), (32, 1, 1080, 0.5, 2.53, 24.2)]),
    "negative losses that go up and down": _lines(WAVEGLOW, [(78540 + 20 * i, x) for i, x in enumerate(("-4.065", "-4.490", "-4.454", "-4.322", "-3.683", "-4.408", "-4.208"))]),
    "a start out of all proportion": _lines(EVALUATED, [(0, 2.1e12, 2.2e12), *((2000 * i, x, y) for i, (x, y) in enumerate(((5.3, 5.4), (3.4, 3.5), (2.1, 2.2), (1.6, 1.7), (1.0, 1.2), (0.6, 0.9), (0.4, 0.8)), 1))]),
    "a batch that jumps, and not the validation": _lines(EVALUATED, [(0, 10.9, 10.9), *((2000 * i, x, y) for i, (x, y) in enumerate(((3.1, 3.2), (2.4, 2.5), (2.1, 2.2), (4.6, 2.2), (2.0, 2.1), (1.9, 2.0), (1.9, 2.0)), 1))]),
    "a scale that is below 1 in one record": _lines(FAIRSEQ_EPOCH, [(53, 4.5, 20198, 0.5)]),
    "twice the loss in two records": _lines(MMDET, [(29, 1, 50, 1.2, 21.3), (30, 1, 100, 1.1, 51.2)]),
    "a rate that is printed as 0": _lines("Epoch  1, Step {0}; acc: {1}; ppl: {2}; xent: {3}; lr: 0.0000; 3142 / 3151 tok/s; 12 sec", [(50, 2.1, 1221.2, 7.11), (100, 4.1, 921.2, 6.83), (150, 6.1, 721.2, 6.58)]),
}  # fmt: skip


def _problems(text, folder):
    path = folder / "pasted.txt"
    path.write_text(text)
    return [(i.condition, i.first_step) for i in analyze(path).incidents if i.is_problem]


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_in_a_few_lines_is_found(name, tmp_path):
    text, condition, step = TROUBLE[name]
    assert (condition, step) in _problems(text, tmp_path)


@pytest.mark.parametrize("name", CALM)
def test_a_healthy_look_alike_is_calm(name, tmp_path):
    assert _problems(CALM[name], tmp_path) == []


def test_a_name_that_is_broken_between_two_words(tmp_path):
    path = tmp_path / "terminal.txt"
    form = (
        "[default7]: iteration   4278{0}/ 115311 | consumed samples:    71455664 | elapsed time (s): 105.16 | learning\n"
        " rate: 4.475E-05 | global batch size: 2048 | lm loss: 2.11{0}073E+00 | grad norm: 0.150 |  number of nan xxx\n"
        "iterations:  0 | samples per second: 19.474 |"
    )
    path.write_text(_lines(form, [(i,) for i in range(5)]))
    run = analyze(path)
    names = {column.name: column.steps.tolist() for column in run.curves.columns}
    assert names["learning rate"] == names["lm loss"] == list(range(42780, 42785))


def _table(path, *columns):
    names, rows = [name for name, _ in columns], zip(*(values for _, values in columns), strict=True)
    path.write_text(
        "\n".join(",".join(map(str, row)) for row in (["step", *names], *([100 * i, *r] for i, r in enumerate(rows))))
    )
    return analyze(path)


def test_a_loss_that_rises_while_the_validation_falls_is_information(tmp_path):
    rises = [0.0002 * (1 + i) for i in range(80)]
    run = _table(tmp_path / "harder.csv", ("loss", rises), ("val_loss", [0.03 / (1 + i / 20) for i in range(80)]))
    (found,) = [i for i in run.incidents if i.condition == "LossDivergence"]
    assert not found.is_problem and "validation loss falls" in found.text
    worse = _table(tmp_path / "worse.csv", ("loss", rises), ("val_loss", [0.03 * (1 + i / 20) for i in range(80)]))
    assert [i.is_problem for i in worse.incidents if i.condition == "LossDivergence"] == [True]


def test_a_jump_to_another_objective_is_information(tmp_path):
    loss = [300 / (1 + i) + 100 for i in range(20)] + [3000 / (1 + i) ** 2 + 90 for i in range(20)]
    term = ["" if i < 20 else 2900 / (i - 19) ** 2 for i in range(40)]
    run = _table(tmp_path / "terms.csv", ("loss", loss), ("trans_loss", term))
    assert run.calm and any("another term" in i.text for i in run.incidents)
    assert not _table(tmp_path / "one.csv", ("loss", loss)).calm


def test_gradients_that_grow_as_learning_begins_are_information(tmp_path):
    loss = [6.9078] * 60 + [6.9 - i / 40 for i in range(140)]
    norm = [0.001 + i / 9000 for i in range(60)] + [3.1 + i % 7 / 10 for i in range(140)]
    run = _table(tmp_path / "vit.csv", ("loss", loss), ("grad_norm", norm))
    (found,) = [i for i in run.incidents if i.condition == "GradientNormExplosion"]
    assert run.calm and "learning began there" in found.text
    stays = _table(tmp_path / "stays.csv", ("loss", [6.9078 + i % 5 / 1e4 for i in range(200)]), ("grad_norm", norm))
    assert "GradientNormExplosion" in [i.condition for i in stays.incidents if i.is_problem]


def test_a_late_start_is_no_standstill(tmp_path):
    path = tmp_path / "late.csv"
    values = [6.90776 for _ in range(60)] + [6.5 - i / 20 for i in range(60)]
    path.write_text("step,loss\n" + "".join(f"{100 * i},{x}\n" for i, x in enumerate(values)))
    (still,) = [i for i in analyze(path).incidents if i.condition == "LossConstant"]
    assert not still.is_problem and "a late start" in still.text


def test_equal_lines_of_several_hosts_are_one_record(tmp_path):
    path = tmp_path / "flax.txt"
    form = "I0208 10:{0}:12.{2}00000 14{2} train.py:352] train epoch: {0}, loss: {1}, accuracy: 0.12"
    path.write_text(_lines(form, [(10 + i, 6.9 - i, host) for i in range(3) for host in (1, 2)]))
    run = analyze(path)
    assert (run.unit, run.records, run.first_step, run.last_step) == ("epoch", 3, 10, 12)


def test_numbers_beside_a_unit_of_speed_are_no_values(tmp_path):
    path = tmp_path / "speed.txt"
    path.write_text(
        _lines("iter {0}: loss {1}, {2} img/s, 1.02K tok/s, 2.3 GB", [(20, 2.3, 1021), (40, 2.1, 9), (60, 2.0, 1e4)])
    )
    assert [column.name for column in analyze(path).curves.columns] == ["loss"]


def test_a_place_in_a_file_is_no_loss(tmp_path):
    path = tmp_path / "wavenet.txt"
    path.write_text(
        _lines(
            "train:  {0}%|##  | {1}/51 [00:30<06:35,  8.41s/b]2017-05-23 09:42:58.0: W core/util/ctc/ctc_loss_calculator.cc:144] No valid path found.",
            [(8, 4), (18, 9), (43, 22)],
        )
    )
    with pytest.raises(LogError):
        analyze(path)


def test_rows_with_their_step_in_the_second_column(tmp_path):
    path = tmp_path / "see.txt"
    path.write_text(
        _lines(
            "{0}          {1}       0.08{2}   0.9497   0.0001      ",
            [(40 + i // 3, 15900 + 100 * i, i) for i in range(7)],
        )
    )
    (column, *_) = analyze(path).curves.columns
    assert column.steps.tolist() == list(range(15900, 16600, 100))


def test_a_blank_cell_stays_blank(tmp_path):
    path = tmp_path / "chainer.txt"
    path.write_text(
        "epoch       iteration   main/loss   validation/main/loss  main/acc    elapsed_time\n"
        "0           100         626.687                           0.0005378   113.983\n"
        "0           200         674.456                           0.0002033   152.658\n"
        "0           300         585.188     601.5                 0.0003033   192.658\n"
    )
    run = analyze(path).curves
    values = {column.name: column.values.tolist() for column in run.columns}
    assert values["validation/main/loss"] == [601.5] and values["main/acc"][:2] == [0.0005378, 0.0002033]
