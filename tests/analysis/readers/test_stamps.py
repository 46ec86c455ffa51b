"""Time stamps before the lines of a log become the times of its records."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from stabwatch.analysis.detectors import detect
from stabwatch.analysis.readers import read_log

SHAPES = {
    "torchtitan": "[rank0]:[titan] {t:%Y-%m-%d %H:%M:%S},338 - root - INFO - step: {s:2}  loss:  {l:.5f}  tps: 7,282\n",
    "fairseq": "{t:%Y-%m-%d %H:%M:%S} | INFO | train_inner | epoch 001: {s} / 900 loss={l:.3f}, num_updates={s}, lr=1e-5\n",
    "paddle": "[{t:%Y/%m/%d %H:%M:%S}] ppocr INFO: epoch: [1/500], global_step: {s}, loss: {l}\n",
    "OLMo": "{t:%Y-%m-%d %H:%M:%S}.460\thost:0\ttrain:908\tINFO\t[step={s}/9000,epoch=0]\n    optim/total_grad_norm=0.5\n"
    "    train/CrossEntropyLoss={l}\n",
    "detectron2": "[{t:%m/%d %H:%M:%S}] d2.utils.events INFO:  eta: 3:01:22  iter: {s}  total_loss: {l:.4f}  lr: 0.004\n",
    "glog": "I{t:%m%d %H:%M:%S}.080772 1399 logging_writer.py:48] [{s}] global_step={s}, loss={l}\n",
}


def _log(tmp_path, shape, gaps):
    at, text = datetime(2025, 12, 31, 22, tzinfo=timezone.utc), "starting up\n2025-12-31 21:59:00 nothing yet\n"
    for s, gap in enumerate(gaps):
        at += timedelta(seconds=gap)
        text += SHAPES[shape].format(t=at, s=10 * s, l=5 - s / 200)
        text += "a line of something else\n" if s % 7 == 0 else ""
    path = tmp_path / "train.log"
    path.write_text(text)
    return read_log(path)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_times_of_records(shape, tmp_path):
    gaps = [20 + s % 3 for s in range(400)]
    (run,) = _log(tmp_path, shape, gaps).runs
    assert np.diff(run.times).tolist() == gaps[1:], "over midnight and the turn of the year"
    if "%Y" in SHAPES[shape]:
        assert run.times[0] == datetime(2025, 12, 31, 22, 0, 20, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stall_is_told_from_time_stamps(shape, tmp_path):
    gaps = [20] * 150 + [7200] + [20] * 150
    (found,) = [f for f in detect(_log(tmp_path, shape, gaps).runs[0]) if f.condition == "TrainingPaused"]
    assert (found.first_step, found.last_step, found.ratio) == (1490, 1500, 7200)
    assert "2.0 h after step 1490" in found.text


def test_lines_without_stamps_have_no_times(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(
        "2025-12-31 21:59:00 begins, takes 01:30:00\n" + "".join(f"step: {s} loss: 2.5\n" for s in range(9))
    )
    assert np.isnan(read_log(path).runs[0].times).all()
    path.write_text("".join(f"99:99:99 2025-99-99 step: {s} loss: 2.5\n" for s in range(9)))
    read_log(path)
