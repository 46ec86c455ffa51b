"""More records than memory should hold: calm ones are thinned, and what the detectors find is the same."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from stabwatch.analysis.detectors import detect
from stabwatch.analysis.readers import documents, read_log, run_builder
from stabwatch.analysis.readers.salience import BLOCK, salient


def _losses(n=40_000):
    losses = 2 + 3 / (1 + np.arange(n) / 2000) + np.random.default_rng(0).normal(0, 0.02, n)
    losses[11_000:11_030] *= 3
    losses[23_456] = np.nan
    return losses


def _text(losses):
    return "".join(f"step {i} loss {x:.4f} grad_norm {1 + (i % 7) / 10} lr 1e-4\n" for i, x in enumerate(losses))


def _json(losses):
    return "".join(json.dumps({"step": i, "loss": round(x, 4), "lr": 1e-4}) + "\n" for i, x in enumerate(losses))


def _table(losses):
    return "step,loss,lr\n" + "".join(f"{i},{x:.4f},1e-4\n" for i, x in enumerate(losses))


@pytest.mark.parametrize("write", [_text, _json, _table])
def test_thinned_records_tell_the_same(write, tmp_path, monkeypatch):
    path = tmp_path / "train.log"
    path.write_text(write(_losses()))
    whole = read_log(path)
    monkeypatch.setattr(run_builder, "MOST_POINTS", 20_000)
    thinned = read_log(path)
    points = [sum(len(c) for c in log.runs[0].columns) for log in (whole, thinned)]
    assert points[0] >= 80_000 and 3 * points[1] < points[0]
    assert any("40,000 records" in note for note in thinned.notes)
    told = [
        [(f.condition, f.first_step, f.last_step, f.line) for f in detect(log.runs[0]) if f.severity != "info"]
        for log in (whole, thinned)
    ]
    assert told[0] == told[1] and {kind for kind, *_ in told[0]} == {"LossSpike", "NonFinite"}
    loss = thinned.runs[0].of("loss")
    assert (np.diff(loss.steps) > 0).all() and loss.steps[-1] == 39_999
    assert np.diff(loss.steps).max() >= 4, "calm stretches are sparse"
    assert (np.diff(loss.steps[(loss.steps > 10_990) & (loss.steps < 11_040)]) == 1).all(), "the spike is whole"


def test_where_everything_stands_out_nothing_does():
    rng = np.random.default_rng(0)
    values = rng.standard_cauchy(64 * BLOCK * 8)
    steps = np.arange(len(values))
    kept = salient(steps, [("loss", steps, values)])
    assert kept.mean() < 0.5 and kept[:BLOCK].all() and kept[-BLOCK:].all()


def test_a_step_that_goes_back_stays_with_both_of_its_sides():
    steps = np.append(np.arange(50_000), np.arange(30_000, 60_000))
    kept = salient(steps, [("loss", np.arange(len(steps)), np.ones(len(steps)))])
    assert kept[49_990:50_010].all() and not kept[20_000]


LINES = [
    {"step": 1, "loss": 2.5, "epoch": 0.0},
    {"step": 2, "loss": 2.4, "epoch": 0.5},
    {"step": 0, "loss": 2.3, "epoch": 1.0},
    {"step": 1, "loss": 2.2, "epoch": 1.5},
    {"step": 2, "loss": float("nan"), "epoch": 1.6},
    {"step": 3, "eval": {"loss": 2.2}, "note": "x"},
    {"step": 4, "loss": 2.0, "epoch": 1.8, "timestamp": 12.0},
    {"step": 5, "loss": 2, "epoch": 2, "timestamp": 13.0},
    {"step": 5, "loss": 1.9, "epoch": 2.1, "timestamp": 14.0},
    {"step": 6, "loss": True, "epoch": 2.1},
    {"step": 7, "loss": 1.8},
]


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 100])
def test_json_lines_at_once_are_what_they_are_one_by_one(at_once, tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + "no json {\n")
    monkeypatch.setattr(documents, "_take_all", lambda *_: False)
    slow = read_log(path)
    monkeypatch.undo()
    monkeypatch.setattr(documents, "_AT_ONCE", at_once)
    quick = read_log(path)
    assert quick.notes == slow.notes
    one, other = quick.runs[0], slow.runs[0]
    np.testing.assert_array_equal(one.steps, other.steps)
    np.testing.assert_array_equal(one.times, other.times)
    assert [c.name for c in one.columns] == [c.name for c in other.columns]
    for mine, its in zip(one.columns, other.columns, strict=True):
        for part in ("steps", "values", "lines"):
            np.testing.assert_array_equal(getattr(mine, part), getattr(its, part), mine.name)


_PEAK = """
import resource, sys
from stabwatch.analysis.readers import read_log
read_log(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_log(tmp_path):
    peaks = []
    for millions in (1, 4):
        path = tmp_path / f"{millions}.log"
        with path.open("w") as out:
            out.writelines(
                f"step {i} loss {2 + i % 97 / 100} grad_norm {1 + i % 89 / 100}\n" for i in range(millions * 10**6)
            )
        done = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.15 * peaks[0], peaks


def test_objects_of_several_kinds_are_read_as_one_by_one(tmp_path, monkeypatch):
    """An evaluation in a hundred lines."""
    rows = []
    for i in range(20_000):
        rows.append({"step": i, "loss": 2.5 + i % 7, "epoch": i / 9000, "lr": 1e-4})
        if i % 100 == 99:
            rows.append({"step": i, "eval_loss": 2.0 + i % 5, "epoch": i / 9000})
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    taken = []
    take = documents._take
    monkeypatch.setattr(documents, "_take", lambda *a: taken.append(1) or take(*a))
    (fast,) = read_log(path).runs
    assert len(taken) < 600
    monkeypatch.setattr(documents, "_take_all", lambda *a: False)
    (slow,) = read_log(path).runs
    assert [c.name for c in fast.columns] == [c.name for c in slow.columns]
    for one, other in zip(fast.columns, slow.columns, strict=True):
        assert one.role == other.role
        for field in ("steps", "values", "lines"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
