"""What trainers print, in their shapes: the step, the loss, the gradient norm and the rest are found."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import math

import pytest

from stabwatch.analysis.readers import read_log

NAN = math.nan
SHAPES = {
    "megatron": (
        " iteration  {s:8}/  159576 | consumed samples:  25 | elapsed time per iteration (ms): 18802.1 | learning rate: 6.000E-05 "
        "| global batch size:    96 | lm loss: {l:.6E} | loss scale: 4096.0 | grad norm: {g:.3f} | num zeros: 0.0 "
        "| number of skipped iterations:   0 | number of nan iterations:   0 |",
        {"learning_rate": 6e-5, "loss_scale": 4096.0, "step_seconds": 18.8021},
    ),
    "neox": (
        "samples/sec: 2.930 | iteration {s:8}/   55000 | elapsed time per iteration (ms): 10921.0 | learning rate: 1.212E-09 "
        "| approx flops per GPU: 9.8TFLOPS | lm_loss: {l:.6E} | loss scale: 4096.0 | grad_norm: {g} |",
        {"step_seconds": 10.921},
    ),
    "torchtitan": (
        "[rank0]:[titan] 2026-05-18 16:04:46,338 - root - INFO - step: {s:2}  loss:  {l:.5f}  grad_norm:  {g:.4f}  "
        "memory:  9.46GiB(64.99%)  tps: 7,282  tflops: 0.52  mfu: 0.17%",
        {"throughput": 7282.0},
    ),
    "nanotron": (
        "10/17/2025 16:31:56 [INFO|DP=0|PP=0|TP=0]: iteration: {s} / 378950 | consumed_tokens: 85.8G | "
        "elapsed_time_per_iteration_ms: 11.5K | tokens_per_sec: 22.8K | lm_loss: {l:.2f} | lr: 1e-05 | grad_norm: {g}",
        {"learning_rate": 1e-5, "throughput": 22800.0},
    ),
    "nanogpt": ("2023-03-22 09:31:23 iter {s}: loss {l:.4f}, time 309.94ms, mfu 108.08%, norm {g}", {}),
    "build-nanogpt": (
        "step {s:5} | loss: {l:.6f} | lr 3.3002e-04 | norm: {g:.4f} | dt: 406.12ms | tok/sec: 1290966.47",
        {"learning_rate": 3.3002e-4, "step_seconds": 0.40612, "throughput": 1290966.47},
    ),
    "llm.c": ("s:{s} trl:{l:.4f} lr:0.000051 norm:{g:.2f}", {"learning_rate": 5.1e-5}),
    "fairseq": (
        "2020-08-01 12:39:39 | INFO | train_inner | epoch 001:   3615 / 6547 loss={l:.3f}, nll_loss=0.001, wps=82565, "
        "ups=2.66, num_updates={s}, lr=9e-06, gnorm={g:.3f}, loss_scale=1399, train_wall=38",
        {"loss_scale": 1399.0, "throughput": 82565.0},
    ),
    "hugging face": (
        "  2%|▏         | {s}/390 [01:33<1:26:53, 13.58s/it]{{'loss': {l:.4f}, 'grad_norm': {g}, 'learning_rate': 2e-05, 'epoch': 0.15}}",
        {"learning_rate": 2e-5},
    ),
    "algoperf": ("I0316 10:52:27.080772 1399 logging_writer.py:48] [{s}] global_step={s}, grad_norm={g}, loss={l}", {}),
    "detectron2": (
        "[11/17 09:38:01] d2.utils.events INFO:  eta: 3:01:22  iter: {s}  total_loss: {l:.4f}  loss_cls: 0.1574  time: 0.6813  "
        "lr: 0.004  max_mem: 11812  grad_norm: {g}",
        {"learning_rate": 0.004},
    ),
    "maxtext": ("completed step: {s}, seconds: 2.167, TFLOP/s: 36.722, loss: {l:.3f}, grad norm: {g}", {"step_seconds": 2.167}),
    "paddle": ("[2023/10/06 13:28:03] ppocr INFO: epoch: [1/500], global_step: {s}, lr: 0.000141, loss: {l}, gnorm: {g}", {}),
    "keyed": ("Global Step: {s}, Step Time: 1.6160, Loss: {l:.4f}, Grad Norm: {g}", {"step_seconds": 1.616}),
    "coloured": ("\x1b[36mINFO\x1b[0m step={s} \x1b[1mloss={l}\x1b[0m gnorm={g}", {}),
}  # fmt: skip


def _write(tmp_path, text, name="train.log"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_a_trainers_lines_are_understood(shape, tmp_path):
    form, others = SHAPES[shape]
    losses, norms = [7.5 - 0.25 * i for i in range(20)], [0.5 + 0.125 * i for i in range(20)]
    lines = [
        form.format(s=100 + 10 * i, l=loss, g=norm) for i, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]
    (run,) = read_log(_write(tmp_path, "starting up\nnothing yet\n" + "\n".join(lines) + "\n")).runs
    loss, norm = run.of("loss"), run.of("grad_norm")
    assert loss.steps.tolist() == [100 + 10 * i for i in range(20)] and run.step_unit == "step"
    assert loss.values.tolist() == pytest.approx(losses, abs=0.006)
    assert norm.values.tolist() == pytest.approx(norms, abs=0.006)
    assert loss.lines.tolist() == list(range(3, 23))
    for role, value in others.items():
        assert run.of(role).values[0] == pytest.approx(value), role


def test_records_of_several_lines_belong_together(tmp_path):
    text = "".join(
        f"2025-12-11 00:27:01.586\thost:0\tolmo.train:979\tINFO\t[step={s}/2500,epoch=0]\n"
        f"    optim/total_grad_norm={s}.5\n    train/CrossEntropyLoss=11.33\n    throughput/total_tokens=8,388,608\n"
        for s in range(1, 9)
    )
    (run,) = read_log(_write(tmp_path, text)).runs
    assert run.of("loss").name == "train/CrossEntropyLoss" and run.of("loss").steps.tolist() == list(range(1, 9))
    assert run.of("grad_norm").values.tolist() == [s + 0.5 for s in range(1, 9)]


def test_tables_and_their_rounded_steps(tmp_path):
    block = "-----------------------\n| grad_norm | 82       |\n| loss      | {} |\n| step      | 2.06e+04 |\n"
    text = "".join(block.format(16.5 - i) for i in range(4)) + "-----------------------\n"
    (run,) = read_log(_write(tmp_path, text)).runs
    assert run.of("loss").values.tolist() == [16.5, 15.5, 14.5, 13.5]


@pytest.mark.parametrize("word", ["nan", "NaN", "NAN", "-nan", "nanxxx", "nan.0"])
def test_every_spelling_of_nan(word, tmp_path):
    text = "".join(f"step: {i} loss: {2.5 if i < 5 else word}\n" for i in range(10))
    values = read_log(_write(tmp_path, text)).runs[0].of("loss").values
    assert [math.isnan(v) for v in values] == [False] * 5 + [True] * 5
    held = read_log(_write(tmp_path, text.replace(word, "N/A"))).runs[0].of("loss")
    assert len(held) == 5, "not measured is not NaN"


FRACTIONS = (
    "Epoch: [{e}][{i}/10]  Time 0.690 (0.986)  Loss {l:.4f} (10.9521)",
    "Epoch [{e}/5], Step [{i}/10], Loss: {l:.4f}",
    "Epoch: [ {e}/200] Iter [  {i}/10] || Time: 3.7 sec || lr: 0.0099 || Loss: {l:.4f}",
    "epoch={e} i={i}/10 total_loss={l:.4f} spectro_loss=0.56",
    "Train: {e} [{i:4}/10 ( 90%)]  Loss: {l:.4f} (4.1)  Time: 0.5s,  2.3/s  LR: 1.0e-06  Data: 0.1 (0.2)",
    "[2022-03-01 swin](main.py 226): INFO Train: [{e}/300][{i}/10]\teta 0:50:00 lr 0.01\ttime 2.4 (2.4)\tloss {l:.4f} (6.9)",
    "Train Epoch: {e} [{i}/10 (10%)]\tLoss: {l:.6f}",
)  # fmt: skip


@pytest.mark.parametrize("shape", FRACTIONS)
def test_an_epoch_and_its_batch_count_together(shape, tmp_path):
    text = "".join(shape.format(e=e, i=i, l=e + i / 10) + "\n" for e in range(3) for i in range(10))
    (run,) = read_log(_write(tmp_path, text)).runs
    assert run.step_unit == "step"
    steps = run.of("loss").steps.tolist()
    assert len(steps) == 30 and steps == sorted(set(steps))
    assert run.of("loss").values[1] == 0.1, "the first number, not the running mean"


def test_a_count_in_brackets_is_a_step_and_the_size_of_a_batch_none(tmp_path):
    text = "".join(
        f"[{s:06}/50000] X4K    | loss {1 / (1 + s):.4f} | VRAM 9.8/15.9GB (62%) | 3.04 it/s | batch 16\n"
        for s in range(0, 50_000, 5000)
    )
    (run,) = read_log(_write(tmp_path, "mini_batch = 4, batch = 64, train = 1\nBatch=16 | LR=5e-05\n" + text)).runs
    assert run.of("loss").steps.tolist() == run.steps.tolist() == list(range(0, 50_000, 5000))


def test_epochs_with_their_seconds_in_brackets_stay_epochs(tmp_path):
    text = "".join(f"Epoch {e}/100 [38.7s] | LR: 3.8e-06 | Train Loss: {3 - e / 50:.4f}\n" for e in range(1, 20))
    (run,) = read_log(_write(tmp_path, text)).runs
    assert run.step_unit == "epoch" and run.of("loss").steps.tolist() == list(range(1, 20))


def test_a_hole_of_zeros_within_the_head_of_a_log(tmp_path):
    lines = [f" {i}: {9 / i:.6f}, {9 / i:.6f} avg loss, 0.000010 rate, 22.2 seconds, 64 images\n" for i in range(1, 40)]
    data = "".join(lines[:9]).encode() + bytes(5000) + "".join(lines[9:]).encode()
    (run,) = read_log(_write(tmp_path, data)).runs
    assert run.of("loss").steps.tolist() == list(range(1, 40))


def test_what_nccl_says_is_no_record(tmp_path):
    text = (
        "r6i4n5:37339:37473 [0] NCCL INFO Channel 00/02 :    0   1\nr9i1n7:8760:8836 [0] NCCL INFO Trees [0] -1/-1->1\n"
    )
    text = text * 20 + "".join(f"iteration {i}/ 90 | lm loss: {9 - i / 10:.4f} |\n" for i in range(1, 9))
    (run,) = read_log(_write(tmp_path, text)).runs
    assert run.steps.tolist() == list(range(1, 9)) and [c.name for c in run.columns] == ["lm loss"]


def test_copies_of_other_ranks_are_left_out(tmp_path):
    text = "".join(f"[rank{r}]: step: {s} loss: {3.0 + r}\n" for s in range(10) for r in (1, 0, 2))
    log = read_log(_write(tmp_path, text))
    assert log.runs[0].of("loss").values.tolist() == [4.0] * 10
    assert any("ranks other than" in note for note in log.notes)


def test_bars_that_were_drawn_again_and_dictionaries_glued_to_them(tmp_path):
    bar = (
        "\r".join(f" {i}%|█         | {i}/100 [00:11<01:33,  5.82s/it]" for i in range(20))
        + "{'loss': 2.5, 'epoch': 0.1}\n"
    )
    other = "                                        {'loss': 2.25, 'epoch': 0.2}\n"
    (run,) = read_log(_write(tmp_path, bar + other)).runs
    assert run.of("loss").values.tolist() == [2.5, 2.25]
    assert run.of("loss").steps[0] == 19


def test_train_and_validation_are_told_apart(tmp_path):
    text = "".join(
        f"step {s}: train loss 3.{s:04}, val loss 4.0\niter {s}: loss 2.{s:04}, time 30ms\nvalidation: loss 9.0\n"
        for s in range(0, 50, 5)
    )
    (run,) = read_log(_write(tmp_path, text)).runs
    assert run.of("loss").name == "loss" and run.of("loss").values.max() < 3.0
    assert {9.0, 4.0} <= {float(v) for c in run.all_of("eval_loss") for v in c.values}


def test_source_code_before_the_first_metric_is_no_metric(tmp_path):
    code = (
        "import torch\nstep = 0\nloss = 5.0\nlr=0.01,\ndef lookup(self, step: int = 3):\n    return loss == 0.0\n" * 40
    )
    text = code + "".join(f"step:{s}/100 train_loss:{4 - s / 100:.4f} train_time:{s}ms\n" for s in range(1, 101))
    (run,) = read_log(_write(tmp_path, text)).runs
    loss = run.of("loss")
    assert loss.name == "train_loss" and loss.steps.tolist() == list(range(1, 101))


OVERFLOWS = {
    "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 64, reducing to 32": 32.0,
    "Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 8.1e-202": 8.1e-202,
    "| WARNING: overflow detected, setting loss scale to: 0.0625": 0.0625,
}


@pytest.mark.parametrize("line", OVERFLOWS)
def test_messages_of_gradient_scalers(line, tmp_path):
    text = "".join(f"step: {i} loss: 2.5\n" for i in range(5)) + line + "\n"
    (remark,) = read_log(_write(tmp_path, text)).runs[0].remarks
    assert (remark.kind, remark.step, remark.line, remark.value) == ("overflow", 4, 6, OVERFLOWS[line])


def test_a_log_without_a_step_is_numbered_and_says_so(tmp_path):
    log = read_log(_write(tmp_path, "".join(f"{{'loss': {3 - i / 10}, 'grad_norm': nan}}\n" for i in range(8))))
    assert log.runs[0].step_unit == "ordinal" and any("numbered" in note for note in log.notes)


WRAPPED = {
    "nothing": "{}",
    "torchrun": "[rank3]:{}",
    "slurm": "0: {}",
    "clock": "2024-05-01T12:00:00.123456Z {}",
    "date": "[2024-05-01 12:00:00] {}",
    "ray": "(TrainWorker pid=12345) {}",
    "mpi": "[1,0]<stdout>:{}",
    "compose": "trainer-1  | {}",
    "journal": "May 01 12:00:00 host python[1234]: {}",
    "colour": "\x1b[32m{}\x1b[0m",
    "carriage return": "{}\r",
}
AWKWARD = {
    "mmengine by iterations": "2023/05/01 12:00:00 - mmengine - INFO - Iter(train) [{s:6}/160000]  lr: 9.9e-03  eta: 1:02:03  time: 0.5  memory: 5000  loss: {l:.4f}",
    "mmengine by epochs": "2023/05/01 12:00:00 - mmengine - INFO - Epoch(train)  [1][{s:5}/70000]  base_lr: 1.0e-02 lr: 9.9e-03  eta: 1:02:03  loss: {l:.4f}",
    "composer": "[batch={s}/4800]:\n\t Train time/batch: {s}\n\t Train time/sample: 245760\n\t Train loss/train/total: {l:.4f}",
    "flax": "I0520 12:00:00.000000 140 logging_writer.py:48] [{s}] accuracy=0.1, learning_rate=0.1, loss={l:.4f}",
    "swift": "{{'loss': {l:.4f}, 'acc': 0.6, 'epoch': 0.01, 'global_step/max_steps': '{s}/3900', 'percentage': '1.2%'}}",
    "llm.c": "s:{s} trl:{l:.4f} lr:0.000051 norm:2.5",
    "llm.c on the terminal": "step {s:4}/18865 | loss {l:.6f} (+1.23z)| norm 0.5000 (+0.50z)| lr 6.00e-04 | 1845.52 ms | 284092 tok/s",
    "nanochat": "step {s:05d}/21400 (0.05%) | loss: {l:.6f} | lrm: 1.00 | dt: 1234.56ms | tok/sec: 424,672 | epoch: 1 | total time: 0.21m",
    "keras": "{s}/3900 [=====>........................] - ETA: 1:23 - loss: {l:.4f} - accuracy: 0.1234",
    "olmo": "2025-12-11 00:27:01.586\thost:0\tolmo.train:979\tINFO\t[step={s}/2500,epoch=0]\n    train/CrossEntropyLoss={l:.3f}\n    train/Perplexity=83,361",
    "thousands": "Step {s:,}/100,000 - loss: {l:.4f} - lr: 3e-04 - tok/s: 12,345",
}  # fmt: skip


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("form", AWKWARD)
def test_awkward_lines_and_what_is_put_before_them(form, wrapped, tmp_path):
    losses = [7.5 - 0.25 * i for i in range(12)]
    lines = [AWKWARD[form].format(s=960 + 10 * i, l=loss) for i, loss in enumerate(losses)]
    text = "\n".join(WRAPPED[wrapped].format(piece) for line in lines for piece in line.split("\n"))
    loss = read_log(_write(tmp_path, "starting up\n" + text + "\n")).runs[0].of("loss")
    assert loss.values.tolist() == pytest.approx(losses, abs=0.001)
    assert loss.steps.tolist() == [960 + 10 * i for i in range(12)]
