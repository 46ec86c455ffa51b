"""Rows under a header that begins with `Epoch`, and the total of the parts that stand in them."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import pytest

from stabwatch.analysis.readers import read_log

V8 = "      Epoch    GPU_mem   box_loss   cls_loss   dfl_loss  Instances       Size\n"
V7 = "     Epoch   gpu_mem       box       obj       cls     total    labels  img_size\n"


def _run(tmp_path, text):
    path = tmp_path / "train.log"
    path.write_text(text, newline="")
    (run,) = read_log(path).runs
    return run


def test_the_bars_of_ultralytics_are_read_where_they_are_full(tmp_path):
    text = "Ultralytics 8.3 Python-3.11 torch-2.6\nhyperparameters: lr0=0.01, loss_ota=1, loss_scale=2\n"
    for epoch in range(1, 7):
        bar = f"      {epoch}/6      2.31G      {3 / epoch:.4f}      2.5      1.25         20        640: "
        text += V8 + "\r".join(f"{bar}{percent:3}%|███| 5/10 [00:01<00:01]" for percent in (50, 100, 100)) + "\n"
        text += "                 Class     Images  Instances      Box(P          R      mAP50: 100%|███| 4/4 [00:00<00:00]\n"
        text += "                   all        128        929      0.642      0.537      0.605\n"
    run = _run(tmp_path, text)
    assert run.step_unit == "epoch" and run.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert run.of("loss").name == "box_loss + cls_loss + dfl_loss"
    assert run.of("loss").values[:2].tolist() == pytest.approx([6.75, 5.25])
    assert run.of("loss_scale") is None, "hyperparameters are no record"


@pytest.mark.parametrize("header", [V7, ""])
def test_yolov7_with_and_without_its_header(header, tmp_path):
    rows = "".join(
        f"{e:6}/299       11G   0.0{70 - e}   0.02702         0    {0.1 - e / 1000:.4f}        30       640"
        + ("\n" if header else "    0.1179    0.1508   0.04697  0.008857    0.1014   0.03674         0\n")
        for e in range(20)
    )
    run = _run(tmp_path, header + rows)
    assert run.of("loss").name == "total_loss" and run.of("loss").values[0] == pytest.approx(0.1)
    assert run.steps.tolist() == list(range(20))
    assert (run.of("eval_loss") is None) == bool(header)


def test_a_nan_in_a_row(tmp_path):
    rows = "".join(
        f"   {e}/9   2.5G   {'nan' if e > 4 else 0.5}   0.1   0.2   30   640: 100%|█| 9/9\n" for e in range(9)
    )
    run = _run(tmp_path, V8.replace("dfl", "obj") + rows)
    assert [str(v) for v in run.of("loss").values[4:6]] == ["0.8", "nan"] or run.of("loss").values[4] == pytest.approx(
        0.8
    )
    assert run.of("loss").values[5] != run.of("loss").values[5]


def test_fractions_that_are_no_rows(tmp_path):
    run = _run(tmp_path, "".join(f"{i}/100 loss: {5 - i / 10}\n" for i in range(12)))
    assert len(run.of("loss")) == 12


def test_the_parts_of_a_table_are_summed(tmp_path):
    head = "epoch, train/box_loss, train/obj_loss, train/cls_loss, val/box_loss, x/lr0\n"
    run = _run(tmp_path, head + "".join(f"{e}, {0.5 + e / 10}, {1.0 - e / 10}, 0.25, 0.6, 0.01\n" for e in range(4)))
    loss = run.of("loss")
    assert loss.values.tolist() == pytest.approx([1.75] * 4) and loss.lines.tolist() == [2, 3, 4, 5]
    assert [c.role for c in run.columns if c.name == "train/box_loss"] == ["component"]


def test_parts_of_other_kinds_are_not_summed(tmp_path):
    run = _run(tmp_path, "step,G_loss,D_loss,kl_loss\n" + "".join(f"{e},1.5,0.5,0.25\n" for e in range(4)))
    assert run.of("loss").name == "G_loss"


@pytest.mark.parametrize(
    ("form", "loss", "at"),
    [
        ("Epoch[{e}] Batch [{i}]\tSpeed: 36.22 samples/sec\tTrain-cross-entropy={l:.4f}", "Train-cross-entropy", 50),
        ("23-05-06 20:40:52.629 - INFO: [epoch: {e}, iter: {s:,}, lr:(1.728e-04,)] l_pix: {l:.4e} ", "l_pix", 1000),
        ("(epoch: {e}, iters: {i}, time: 1.294, data: 0.907) G_GAN: {l:.3f} G_L1: 20.5 D_real: 0.5 D_fake: 0.2", "G_GAN", 50),
    ],
)  # fmt: skip
def test_losses_that_are_not_called_so(form, loss, at, tmp_path):
    lines = [
        form.format(e=e, i=i, s=1000 * (10 * e + i // 5), l=5 - e - i / 100) for e in range(3) for i in range(5, 55, 5)
    ]
    run = _run(tmp_path, "\n".join(lines) + "\nEpoch[2] Time cost=30.252\n")
    assert run.of("loss").name == loss and len(run.of("loss")) == 30
    assert run.of("loss").values[:2].tolist() == pytest.approx([4.95, 4.9])
    assert run.of("loss").steps[1] - run.of("loss").steps[0] in (5, 1000) and len(set(run.steps.tolist())) == 30


def test_configurations_are_no_records(tmp_path):
    text = (
        "config: {'lr': 0.01, 'loss_ota': 1, 'loss_scale': 1.0}\n2023 INFO config_cb opt {'loss_scale': 1.0, 'lr': 1}\n"
    )
    run = _run(tmp_path, text * 9 + "".join(f"step {i} loss: {3 - i / 10}\n" for i in range(9)))
    assert [c.name for c in run.columns] == ["loss"] and len(run.of("loss")) == 9
