"""Lists of numbers, as scripts print their history: each is a curve, and NaN in it shows."""

from __future__ import annotations

import math

import pytest

from stabwatch.analysis import analyze_source, open_source
from stabwatch.analysis.readers import read_log
from stabwatch.errors import LogError

LOSS = [round(2.3 * 0.97**i, 4) for i in range(40)]
TOLD = [round(2.4 * 0.98**i, 4) for i in range(40)]
LOST = [*LOSS[:30], *[math.nan] * 10]


def _arrays(values):
    rows = "\n  ".join(" ".join(f"{x:.6f}" for x in values[i : i + 8]) for i in range(0, len(values), 8))
    return f"Epoch losses\n[ {rows}]\n"


SHAPES = {
    "two assignments": (f"train_loss = {LOSS}\nval_loss = {TOLD}\n", ["train_loss", "val_loss"]),
    "words in the plural": (f"Train losses: {LOSS}\nTest losses: {TOLD}\n", ["Train loss", "Test loss"]),
    "a dictionary of Python": (f"{{'loss': {LOSS}, 'val_loss': {TOLD}}}\n", ["loss", "val_loss"]),
    "a history after words": (f"history: {{'loss': {LOSS}}}\nDone.\n", ["loss"]),
    "an array under its name": (_arrays(LOSS), ["Epoch loss"]),
    "numbers of NumPy": (f"losses = [{', '.join(f'np.float64({x})' for x in LOSS)}]\n", ["loss"]),
    "lists on one line": (f"loss list: {LOSS} acc list: {TOLD}\n", ["loss", "acc"]),
}


@pytest.mark.parametrize(("text", "names"), SHAPES.values(), ids=SHAPES)
def test_each_list_is_a_curve(text, names, tmp_path):
    path = tmp_path / "out.txt"
    path.write_text(text)
    (run,) = read_log(path).runs
    assert [column.name for column in run.columns] == names
    assert run.of("loss").values.tolist() == pytest.approx(LOSS, abs=1e-6)
    assert run.steps.tolist() == list(range(40)) and run.step_unit == "ordinal"


@pytest.mark.parametrize("text", [f"Train losses: {LOST}\n", "\n".join(map(str, LOST))])
def test_nan_in_a_list_is_told_with_its_place(text, tmp_path):
    path = tmp_path / "losses.txt"
    path.write_text(text)
    (source,) = open_source(path)
    (found,) = [i for i in analyze_source(source).incidents if i.is_problem]
    assert (found.condition, found.first_step, found.records) == ("NonFinite", 30, 10)
    assert found.line == (31 if "\n" in text[:20] else 1)


def test_a_name_that_comes_again_is_another_run(tmp_path):
    path = tmp_path / "loss_log.txt"
    path.write_text(f"RNN:{LOSS}\nLSTM:{TOLD}\nRNN:{TOLD}\n")
    runs = read_log(path).runs
    assert [[column.name for column in run.columns] for run in runs] == [["RNN loss", "LSTM loss"], ["RNN loss"]]


def test_a_validation_at_each_fifth_value_has_its_place(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text(f"train_loss = {LOSS}\nval_loss = {TOLD[:8]}\n")
    (run,) = read_log(path).runs
    assert run.of("eval_loss").steps.tolist() == list(range(4, 40, 5))


def test_lists_beside_records_are_none(tmp_path):
    path = tmp_path / "train.log"
    path.write_text("".join(f"step {i} loss {x} action [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]\n" for i, x in enumerate(LOSS)))
    assert read_log(path).runs[0].of("loss").values.tolist() == LOSS


@pytest.mark.parametrize("text", ["shape [1, 3, 224, 224]\n", "[1, 2]\n[3, 4]\n"])
def test_short_lists_are_no_curves(text, tmp_path):
    path = tmp_path / "out.txt"
    path.write_text(text)
    with pytest.raises(LogError):
        read_log(path)


def _rows(delimiter):
    return "".join(delimiter.join(map(str, (round(a + b, 6), a, b))) + "\n" for a, b in zip(LOSS, TOLD, strict=True))


@pytest.mark.parametrize("delimiter", [",", " ", "\t", "; "])
def test_rows_of_numbers_whose_first_is_the_sum_of_the_others(delimiter, tmp_path):
    path = tmp_path / "loss.csv"
    path.write_text(_rows(delimiter))
    (run,) = read_log(path).runs
    assert [column.name for column in run.columns] == ["loss", "column 2", "column 3"]
    assert run.of("loss").values.tolist() == pytest.approx([a + b for a, b in zip(LOSS, TOLD, strict=True)], abs=1e-5)


def test_rows_of_numbers_of_which_nothing_is_said(tmp_path):
    (tmp_path / "points.txt").write_text(_rows(" "))
    with pytest.raises(LogError):
        read_log(tmp_path / "points.txt")
    (tmp_path / "loss.txt").write_text("".join(f"{a} {b}\n" for a, b in zip(LOSS, TOLD, strict=True)))
    (run,) = read_log(tmp_path / "loss.txt").runs
    assert [(column.name, column.role) for column in run.columns] == [("column 1", "other"), ("column 2", "other")]
