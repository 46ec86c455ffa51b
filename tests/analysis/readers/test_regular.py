"""Lines whose words say nothing are read as columns, if they differ only in their numbers."""

from __future__ import annotations

import pytest

from stabwatch.analysis import analyze
from stabwatch.analysis.readers import read_log
from stabwatch.errors import LogError

FORMS = (
    "iter {s}/20000: total {v}, cls {w}, box 0.31, 0.52 s/it",
    "| {s} | {v} | {w} | 1e-4 |",
    "Loss at {s}: tensor({v}, device='cuda:0', grad_fn=<NllLossBackward>)",
    "Epoch {e}, train err {v}, val err {w}",
    "[INFO] epoch {e}: J = {v}",
    "  {e}/100 1.2G {v} {w} 0.02 45 640:",
    "ep {e} it {s} recon {v} kld {w}",
    "12:01:05 | step {s} | {v} | {w}",
    "Training loss (for one batch) at step {s}: {v}",
    "iteration: {s} energy: {v}",
)


def _write(path, form, first, second):
    lines = (form.format(s=100 * i, e=i, v=v, w=w) for i, (v, w) in enumerate(zip(first, second, strict=True), 1))
    path.write_text("\n".join(lines) + "\n")
    return path


def _told(path):
    return [i.condition for i in analyze(path).incidents if i.is_problem]


@pytest.mark.parametrize("form", FORMS)
def test_nan_and_explosions_are_seen_in_any_words(tmp_path, form):
    falls = ("2.5001", "2.3702", "2.2403", "2.1104", "1.9805", "1.8506")
    also = ("1.9011", "1.7912", "1.6813", "1.5714", "1.4615", "1.3516")
    assert _told(_write(tmp_path / "calm", form, falls, also)) == []
    assert "NonFinite" in _told(_write(tmp_path / "nan", form, (*falls[:3], *["nan"] * 3), (*also[:3], *["nan"] * 3)))
    grows = ("1.02e+6", "1.11e+7", "1.27e+8")
    assert _told(_write(tmp_path / "explodes", form, (*falls[:3], *grows), (*also[:3], *grows)))


def test_scores_alone_are_no_loss_and_tables_of_classes_no_records(tmp_path):
    path = tmp_path / "scores"
    path.write_text("".join(f"round {i} utility {0.5 + i / 100:.4f} wins {0.3 + i / 90:.4f}\n" for i in range(1, 30)))
    assert read_log(path).runs[0].of("loss") is None
    path.write_text("bicycle 0.01 0.02 0.03\ncar 0.40 0.51 0.45\nbus 0.20 0.31 0.24\ntree 0.9 0.8 0.85\n")
    with pytest.raises(LogError):
        read_log(path)


def test_two_splits_side_by_side_and_names_that_come_again(tmp_path):
    path = tmp_path / "table"
    rows = "".join(f"| {i} | {40 + i} | {3 - i / 10:.2f} | | {i} | {38 + i} | {3.2 - i / 20:.2f} |\n" for i in range(6))
    above = "| train | | | | validate | | |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    path.write_text(f"{above}| epoch | Top1 | Loss | | epoch | Top1 | Loss |\n{rows}")
    run = read_log(path).runs[0]
    assert run.of("loss").name == "train Loss" and run.of("eval_loss").name == "validate Loss"
    assert run.of("eval_loss").values[0] == 3.2 and run.of("loss").values[0] == 3.0


def test_an_epoch_that_is_told_behind_a_full_bar(tmp_path):
    path = tmp_path / "bars"
    bars = "100%|####| 12328/12328 [1:19:17<00:00, 2.59it/s]\n"
    path.write_text(
        "".join(f"{bars}Epoch : {e} finished. Training Loss: nan. Validation Loss: nan\n" for e in range(3))
    )
    run = read_log(path).runs[0]
    assert run.of("loss").steps.tolist() == [0, 1, 2] and run.of("loss").name == "Training Loss"


def test_a_cost_in_words(tmp_path):
    path = tmp_path / "cost"
    path.write_text("cost is: nan\nbinary cost is: 1.8876\ninstance cost is: inf\n")
    assert _told(path) == ["NonFinite"]


def test_a_name_above_its_number(tmp_path):
    path = tmp_path / "below"
    path.write_text("".join(f"current training loss is :\n{v}\n.....\nDEV: f1\n" for v in (0.5, 0.4, "nan", "nan")))
    assert read_log(path).runs[0].of("loss").values[:2].tolist() == [0.5, 0.4] and _told(path) == ["NonFinite"]


def test_a_mean_of_an_epoch_that_is_nan_already(tmp_path):
    path = tmp_path / "bar"
    path.write_text(
        "     Epoch   gpu_mem       box       obj       cls     total    labels  img_size\n"
        "     0/299     18.5G    0.1126     2.552    0.4747     3.139       540       768: 0%|  | 1/234 [00:04<18]\n"
        "     0/299     18.7G       nan     2.028       nan       nan       521       768: 6%|# | 15/234 [00:23<04]\n"
    )
    assert _told(path) == ["NonFinite"]


def test_a_box_loss_that_is_named_l1(tmp_path):
    path = tmp_path / "rcnn"
    path.write_text("Epoch[0] Batch [3300]\tTrain-RpnAcc=0.918204,\tRpnL1=nan,\tRcnnAcc=0.940387,\tRcnnL1=nan,\n")
    assert _told(path) == ["NonFinite"]
