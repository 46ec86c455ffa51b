"""What was not understood is shown: lines with numbers, one line on request, and files that are no logs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from stabwatch.analysis import analyze
from stabwatch.analysis.analyze import document
from stabwatch.analysis.readers import read_log
from stabwatch.analysis.readers.explain import explain, explain_text
from stabwatch.cli.app import app
from stabwatch.errors import LogError

STEPS = [f"step {i} | loss {3 - i / 50:.3f}" for i in range(88)]


def _write(tmp_path, lines, name="train.log"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lines_that_were_not_understood_are_counted_and_shown_everywhere(tmp_path):
    path = _write(tmp_path, [*STEPS, *(f"wobble of {i} is {i / 7:.3f} at 12:00:01" for i in range(412))])
    note = "412 of 500 lines with numbers were not understood; like this: wobble of 0 is 0.000 at 12:00:01"
    found = analyze(path)
    assert note in found.notes
    assert note in json.loads(json.dumps(document([found])))["runs"][0]["notes"]
    shown = CliRunner().invoke(app, ["analyze", str(path)]).output
    assert "412 of 500 lines with numbers were not understood" in " ".join(shown.split())


def test_a_few_other_lines_are_no_note(tmp_path):
    path = _write(tmp_path, [*STEPS, "2024-05-01 12:00:00 saved to ckpt-12", "seed 12"])
    assert not any("not understood" in note for note in read_log(path).notes)


def test_rows_and_objects_that_were_not_understood_are_counted(tmp_path):
    table = _write(tmp_path, ["step,loss", *(f"{i},2.5" for i in range(9)), "total,31"], "a.csv")
    assert any(note.startswith("1 of 10 lines with numbers") for note in read_log(table).notes)
    lines = [json.dumps({"step": i, "loss": 2.5}) for i in range(9)]
    objects = _write(tmp_path, [*lines, '{"step": 9, "lo'], "a.jsonl")
    assert any(note == '1 of 10 lines with numbers were not understood; like this: {"step": 9, "lo'
               for note in read_log(objects).notes)  # fmt: skip


def test_one_line_is_explained(tmp_path):
    path = _write(tmp_path, ["hello 5", *STEPS])
    said = explain(path, 3)
    assert said[0] == "Line 3: step 1 | loss 2.980" and "step 1: loss = 2.98 (judged as the training loss)" in said
    assert any("Nothing was taken from this line" in line for line in explain(path, 1))
    with pytest.raises(LogError, match="has no line 900"):
        explain(path, 900)
    said = explain_text("iter 7 loss nan foo 9 bar")
    assert "step 7: loss = nan (judged as the training loss)" in said and "Numbers that were not used: 9" in said
    assert "Nothing in it was understood" in explain_text("hello 5")[1]


def test_one_line_is_explained_on_the_command_line(tmp_path):
    path = _write(tmp_path, STEPS)
    shown = CliRunner().invoke(app, ["analyze", str(path), "--explain", "2"])
    assert shown.exit_code == 0 and "step 1: loss = 2.98" in shown.output
    shown = CliRunner().invoke(app, ["analyze", "--explain", "{'loss': 0.5, 'grad_norm': inf}"])
    assert "grad_norm = inf (the gradient norm)" in shown.output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04\x00\x00" + bytes(range(256)) * 4, "looks like a ZIP archive"),
        (b"\x93NUMPY\x01\x00" + bytes(range(256)), "looks like a NumPy array"),
        (b"\x80\x04\x95" + bytes(range(256)) * 2, "looks like a Python pickle"),
        (bytes(4096), "looks like nothing but zero bytes"),
        (np.random.default_rng(0).bytes(4096), "looks like binary data"),
        (b"the quick brown fox\n" * 20, "looks like text and was read as text"),
        (b"wobble 12 is 3\n" * 20, "20 of 20 lines with numbers were not understood; like this: wobble 12 is 3"),
    ],
)
def test_a_file_that_is_no_log_says_what_it_looks_like(content, words, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(LogError) as raised:
        read_log(path)
    assert words in str(raised.value)
    if any(content):
        assert "TensorBoard, W&B offline, JSON document, JSON lines, table, text" in str(raised.value)
