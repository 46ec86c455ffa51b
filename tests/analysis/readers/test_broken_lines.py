"""Records that are broken over lines, that share a line, or whose values stand above their step."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import pytest

from stabwatch.analysis.detectors import detect
from stabwatch.analysis.readers import read_log
from stabwatch.analysis.readers.wrapping import joined, width_of

N = 30
LOSSES = [9.1234 - 0.2 * i for i in range(N)]
MEGATRON = " iteration {s:8}/  159576 | consumed samples: {c} | elapsed time per iteration (ms): 4247.9 | learning rate: 6.000E-05 | lm loss: {l:.6E} | grad norm: 0.517 |"
HUGGING_FACE = (
    "{{'loss': {l:.4f}, 'grad_norm': 1.5214331150054932, 'learning_rate': 4.9999871292419044e-05, 'epoch': 0.{s:03}}}"
)


def _log(tmp_path, text):
    path = tmp_path / "train.log"
    path.write_text(text, newline="")
    return read_log(path)


def _broken(lines, width):
    return "".join(line[i : i + width] + "\n" for line in lines for i in range(0, len(line), width))


@pytest.mark.parametrize("width", [57, 80, 86, 120, 132])
@pytest.mark.parametrize("form", [MEGATRON, HUGGING_FACE], ids=["megatron", "hugging face"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_lines_that_a_terminal_broke_are_joined(form, width, ending, tmp_path):
    lines = [form.format(s=i, c=256 * i, l=loss) for i, loss in enumerate(LOSSES, 1)]
    plain, broken = _log(tmp_path, "\n".join(lines) + "\n"), _log(tmp_path, _broken(lines, width).replace("\n", ending))
    (a,), (b,) = plain.runs, broken.runs
    assert [(c.name, c.role) for c in a.columns] == [(c.name, c.role) for c in b.columns]
    for one, other in zip(a.columns, b.columns, strict=True):
        assert one.values.tolist() == other.values.tolist() and one.steps.tolist() == other.steps.tolist()
    apart = -(-len(lines[0]) // width)
    if all(len(line) == len(lines[0]) for line in lines):
        assert b.lines.tolist() == [1 + apart * i for i in range(N)]


TABLE = "".join(f"| loss   {loss:30.4f} |\n| step   {i:30} |\n|{'-' * 39}|\n" for i, loss in enumerate(LOSSES))


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"step {i:6} loss {loss:8.4f} time 1.25 s of 100.00 s in all 1\n" for i, loss in enumerate(LOSSES)),
        "".join(f"{i:06},{loss:012.8f},{loss:012.8f},{loss:012.8f}\n" for i, loss in enumerate(LOSSES)),
        TABLE,
        "".join(
            f"epoch {i:4} loss {loss:8.4f} of the training set of today\n  val acc 0.5\n"
            for i, loss in enumerate(LOSSES)
        ),
        "short\nlines\n",
        "",
    ],
    ids=["one width", "csv", "table", "a second line", "short", "empty"],
)
def test_other_lines_are_not_joined(text):
    assert width_of(text) is None


def test_a_record_over_many_lines_keeps_its_place():
    lines = [b"a" * 40, b"b" * 40, b"c", b"d" * 40, b"e"]
    assert joined(lines, 40) == [b"a" * 40 + b"b" * 40 + b"c", b"", b"", b"d" * 40 + b"e", b""]


def test_broken_lines_at_the_edges_of_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("stabwatch.analysis.readers.file._CHUNK", 1 << 9)
    lines = [MEGATRON.format(s=i, c=256 * i, l=loss) for i, loss in enumerate(LOSSES, 1)]
    loss = _log(tmp_path, _broken(lines, 80)).runs[0].of("loss")
    assert loss.steps.tolist() == list(range(1, N + 1)) and loss.values.tolist() == pytest.approx(LOSSES)


def test_values_above_their_step_belong_to_it(tmp_path):
    text = "".join(
        f"Training: 2023-03-14 09:08:{i:02},293-Speed 2178.40 samples/sec   Loss {loss:.4f}   LearningRate 0.001000   \n"
        f"Epoch: 0   Global Step: {10 * i}   Fp16 Grad Scale:  1024   Required: 194 hours\n"
        for i, loss in enumerate(LOSSES, 2)
    )
    run = _log(tmp_path, text).runs[0]
    assert run.of("loss").steps.tolist() == [10 * i for i in range(2, N + 2)]
    assert run.of("loss").values.tolist() == pytest.approx(LOSSES) and len(run.of("loss_scale")) == N


def test_values_below_their_step_stay_there(tmp_path):
    text = "".join(f"step {i}\n  loss: {loss:.4f}\n" for i, loss in enumerate(LOSSES))
    loss = _log(tmp_path, text).runs[0].of("loss")
    assert loss.steps.tolist() == list(range(N)) and loss.values.tolist() == pytest.approx(LOSSES)


def test_records_on_one_line_are_told_apart_by_their_times(tmp_path):
    text = " ".join(
        f"[2021/06/30 12:{i:02}:47] root INFO: epoch: [1/500], iter: {10 * i}, lr: 0.001000, loss: {loss:.6f}, acc: 0.06"
        for i, loss in enumerate(LOSSES)
    )
    loss = _log(tmp_path, text + "\n").runs[0].of("loss")
    assert loss.steps.tolist() == [10 * i for i in range(N)] and loss.values.tolist() == pytest.approx(LOSSES)


OWN = {
    "glued": ("epoch 0 iteration{s}, Loss: {l:.4f}, Train Steps/Sec: 0.00\n", 100),
    "glued at the end": ("Loss: {l:.4f} at step{s}\n", 100),
    "behind its count": ("[2018-11-22 16:53:22 INFO] 0 epoch,  {s}  batch, Discriminator  Loss:  {l:.6f}\n", 1),
    "two fractions": ("[1/25][{s}/3183] Loss: {l:.6f}\n", 100),
    "iter and step": ("Ep 1 | iter {s} | step 1: loss train (curr): {l:.3f}, val (prev val iter): None | iter time: 9.27 ms\n", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_steps_beside_other_counts(name, tmp_path):
    form, apart = OWN[name]
    text = "".join(form.format(s=apart * i, l=loss) for i, loss in enumerate(LOSSES))
    loss = _log(tmp_path, text).runs[0].of("loss")
    assert loss.steps.tolist() == [apart * i for i in range(N)] and loss.values.tolist() == pytest.approx(
        LOSSES, abs=1e-3
    )


def test_epochs_that_are_named_after_the_first_steps_go_on(tmp_path):
    text = "".join(f"{i}/40 [=====>..] - ETA: 1s - loss: {loss:.4f}\n" for i, loss in enumerate(LOSSES, 1))
    text += "40/40 [=======] - 9s - loss: 3.0 - val_loss: 3.1\nEpoch 9/50\n"
    text += "".join(f"{i}/40 [=====>..] - ETA: 1s - loss: 2.9\n" for i in range(1, 30))
    run = _log(tmp_path, text).runs[0]
    assert (run.steps[1:] > run.steps[:-1]).all() and run.steps[-1] == 69


def test_a_bar_above_the_first_epoch_counts_nothing(tmp_path):
    text = "Training:   0%|          | 0/18 [00:00<?, ?it/s]\n" + "".join(
        f"Epoch 0:  {i}%|██▏       | {i}/18 [00:17<01:02,  4.47s/it, loss={loss:.3f}, v_num=1]\n"
        for i, loss in enumerate(LOSSES[:18], 1)
    )
    assert _log(tmp_path, text).runs[0].steps.tolist() == list(range(1, 19))


ESPNET = "[gpu:0/2] 2020-11-11 16:41:00,521 (trainer:486) INFO: {e}epoch:train:{a}-{b}batch: iter_time=0.001, loss={l:.3f}, lr_0=0.100\n"
RESULTS = "[gpu:0/2] 2020-11-11 16:41:04,070 (trainer:243) INFO: {e}epoch results: [train] iter_time=0.001, loss={l:.3f}, time=1 minute and 44.19 seconds, total_count=52549, [valid] loss=1.854, cer_ctc=nan\n"
STARTED = (
    "[gpu:0/2] 2020-11-11 16:41:04,632 (trainer:184) INFO: {e}/20epoch started. Estimated time to finish: 23 minutes\n"
)


def test_espnet_counts_on_over_epochs(tmp_path):
    text = "".join(
        STARTED.format(e=e)
        + "".join(ESPNET.format(e=e, a=375 * k + 1, b=375 * (k + 1), l=9 - e) for k in range(4))
        + RESULTS.format(e=e, l=9 - e)
        for e in range(7, 9)
    )
    run = _log(tmp_path, text).runs[0]
    assert run.steps.tolist() == [375 * k for k in range(1, 9)] and len(run.of("eval_loss")) == 2


def test_espnet_epochs_alone_are_epochs(tmp_path):
    run = _log(tmp_path, "".join(RESULTS.format(e=e, l=20 - e) for e in range(7, 12))).runs[0]
    assert run.step_unit == "epoch" and run.of("loss").steps.tolist() == [7, 8, 9, 10, 11]


def test_rows_shorter_or_longer_than_their_header(tmp_path):
    text = "Step  Train Loss    Val Loss   Change  Notes\n----\n100      3.0952      3.0265\n" + "".join(
        f"{100 * i}      {loss:.4f}      3.2922    +0.251{'  <<< higher' * (i % 7 == 0)}\n"
        for i, loss in enumerate(LOSSES, 2)
    )
    run = _log(tmp_path, text).runs[0]
    assert run.of("loss").steps.tolist() == [100 * i for i in range(1, N + 2)] and len(run.of("eval_loss")) == N + 1


def test_a_table_without_names_is_a_step_and_its_loss(tmp_path):
    log = _log(tmp_path, "".join(f"{12250 + i},{loss:.5f},0.73348\n" for i, loss in enumerate(LOSSES)))
    loss = log.runs[0].of("loss")
    assert loss.steps.tolist() == [12250 + i for i in range(N)] and loss.values.tolist() == pytest.approx(LOSSES)
    assert any("no names" in note for note in log.notes)


def test_all_ranks_have_one_scale(tmp_path):
    text = "".join(
        f"2024-01-14 01:03:00,826 WARNING [train.py:1057] ({rank}/4) Grad scale is small: 1.2e-26\n" for rank in (2, 0)
    )
    text += "RuntimeError: grad_scale is too small, exiting: 1.2e-26\n"
    run = _log(tmp_path, text).runs[0]
    assert [r.line for r in run.remarks] == [1, 3]
    ((condition, said),) = [(f.condition, f.text) for f in detect(run) if f.is_problem]
    assert condition == "LossScaleCollapse" and said.startswith("The loss scale is 1.2e-26 in line 1. ")


def test_lines_that_are_one_tensor_are_records(tmp_path):
    text = "".join(f"tensor({loss:.4f}, device='cuda:0', grad_fn=<NllLossBackward0>)\n" for loss in LOSSES)
    run = _log(tmp_path, text + "tensor(nan, device='cuda:0')\n").runs[0]
    assert run.step_unit == "ordinal" and run.of("loss").values[:-1].tolist() == pytest.approx(LOSSES)
    assert len(run.of("loss")) == N + 1


def test_a_bar_without_epochs_counts_on(tmp_path):
    text = "".join(f"{i}/30 [===>..] - ETA: 1s - loss: {loss:.4f}\n" for i, loss in enumerate(LOSSES, 1))
    run = _log(tmp_path, text + text).runs[0]
    assert run.steps.tolist() == list(range(1, 2 * N + 1))


VITS = "INFO:my-test:Train Epoch: {e} [1%]\nINFO:my-test:[{s}, 9.99875e-05]\nINFO:my-test:loss_disc={l:.3f}, loss_gen=3.076, loss_mel=21.974\nINFO:my-test:====> Epoch: {e} [2023-06-11 08:52:05] | (1:32:29.395655)\n"


def test_a_step_and_a_rate_in_brackets_above_losses(tmp_path):
    run = _log(tmp_path, "".join(VITS.format(e=i, s=200 * i, l=loss) for i, loss in enumerate(LOSSES, 1))).runs[0]
    assert run.of("loss").name == "loss_disc" and run.of("loss").steps.tolist() == [200 * i for i in range(1, N + 1)]
    assert len(run.of("learning_rate")) == N and run.of("eval_loss") is None


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (
            "E104 iter[ 14/ 15] | [Loss] {l:.4f} | [exp] ./exp/0125 | [step]  {s} | [url] none | [time] 0.4m (~4h)\n",
            "Loss",
        ),
        (
            "INFO:root:Epoch[0] Batch [{s}]\tSpeed: 3.22 samples/sec\tCrossEntropy={l:.4f}\tSmoothL1=0.8168\n",
            "CrossEntropy",
        ),
        ("iteration : {s}, losses : {l:.4f}\n", "losses"),
        ("> INFO:tensorflow:loss = {l:.4f}, step = {s} (182.200 sec)\n", "loss"),
    ],
)
def test_names_in_brackets_and_behind_loggers(form, name, tmp_path):
    loss = _log(tmp_path, "".join(form.format(s=i, l=loss) for i, loss in enumerate(LOSSES, 1))).runs[0].of("loss")
    assert loss.name == name and loss.steps.tolist() == list(range(1, N + 1))
    assert loss.values.tolist() == pytest.approx(LOSSES)


def test_a_header_with_one_blank_between_its_names(tmp_path):
    text = "epoch train loss valid loss accuracy_thresh f2_opt\n" + "".join(
        f"{i} {loss:.4f} {loss + 0.1:.4f} 0.997788 0.5\n" for i, loss in enumerate(LOSSES)
    )
    run = _log(tmp_path, text).runs[0]
    assert run.step_unit == "epoch" and run.of("loss").values.tolist() == pytest.approx(LOSSES)
    assert run.of("eval_loss").values[0] == pytest.approx(LOSSES[0] + 0.1)


def test_the_duration_of_an_epoch_is_no_epoch(tmp_path):
    text = "".join(
        f"Epoch {i}: 100%|███| 266/266 [00:42<00:00,  6.22it/s, loss={loss:.4f}]\nTraining time for one epoch: 42.798 seconds\n"
        for i, loss in enumerate(LOSSES, 8)
    )
    run = _log(tmp_path, text).runs[0]
    assert run.step_unit == "epoch" and run.of("loss").steps.tolist() == [8 + i for i in range(N)]


def test_statistics_of_an_evaluation(tmp_path):
    text = "".join(
        f"Eval metrics at step {6 * i}:\n  Reward: mean={loss:.3f}, min=1.92, max=10.06\n"
        for i, loss in enumerate(LOSSES)
    )
    (column,) = (c for c in _log(tmp_path, text).runs[0].columns if c.name == "Reward/mean")
    assert column.steps.tolist() == [6 * i for i in range(N)]


def test_lines_of_one_width_above_names_are_not_broken():
    text = "".join(
        f"progress  epoch 50  step {i}02  image/sec 35.6  remaining 0m\ndiscrim_loss 0.4{i}\ngen_loss_L1 381.{i}\n"
        for i in range(4, 8)
    )
    assert width_of(text) is None


def test_epochs_below_a_bar_of_the_width_of_a_terminal_are_not_broken():
    bar = "401/401 [==============================] - 21s 53ms/step - loss: nan - triplet_acc: 0.0000e+00 - val_loss: nan - val_triplet_acc: 0.0000e+00"
    assert len(bar) == 140
    assert width_of("".join(f"Epoch {i}/1000\n{bar}\n" for i in range(1, 9))) is None
