"""Post-hoc: the same rules over a run folder, and plain data for JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stabwatch.alerts import Engine
from stabwatch.analysis import analyze
from stabwatch.errors import RunLogError
from stabwatch.runlog import Event, Meta, RunFolder
from tests.alerts.scenarios import block, wave

META = Meta(run="r", created=0.0, host="h", pid=1, pid_started=0.0)


def _write(path, series, events=()):
    folder = RunFolder(path, META)
    b = block(series)
    for i in range(len(b)):
        folder.append(b.layout, int(b.steps[i]), float(b.times[i]), b.rows[i])
    for event in events:
        folder.event(event)
    folder.close()
    return path


def test_a_calm_run(tmp_path):
    end = Event("end", 1050.0, 49, {"reason": "finished"})
    found = analyze(_write(tmp_path / "run", {"loss": wave(50)}, [Event("start", 999.0, 0), end]))
    assert (found.exit_code, found.ended, found.records, found.last_step) == (0, "finished", 50, 49)
    assert found.duration == 49.0
    assert [s.signal for s in found.series] == ["loss", "loss_nonfinite_total"]


def test_a_bad_run_is_judged_exactly_as_live(tmp_path):
    series = {"loss": wave(60), "lower a": [10.0] * 30 + [150.0] * 30}
    found = analyze(_write(tmp_path / "run", series))
    live = Engine()
    live.observe(block(series))
    assert found.alerts == live.history
    assert (found.exit_code, found.ended) == (1, None)


def test_its_data_is_json_even_when_numbers_are_not(tmp_path):
    series = {"loss": [*wave(30), float("nan"), float("inf")], "lower a": [150.0] * 32}
    errors = [Event("error", 1.0, 3, {"probe": "loss", "message": "m"}), Event("coverage", 2.0, 8, {"missing": []})]
    found = analyze(_write(tmp_path / "run", series, errors))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["calm"] is False
    loss = next(s for s in data["series"] if s["signal"] == "loss")
    assert loss["nonfinite"] == 2 and loss["last"] is None and np.isfinite(loss["largest"])
    assert data["errors"][0]["probe"] == "loss" and data["coverage"] == {"missing": []}


def test_a_run_that_was_started_again_has_not_ended(tmp_path):
    events = [Event("end", 1.0, 5, {"reason": "killed"}), Event("start", 2.0, 5)]
    assert analyze(_write(tmp_path / "run", {"loss": wave(5)}, events)).ended is None


def test_an_empty_run_and_no_run(tmp_path):
    assert analyze(_write(tmp_path / "run", {"loss": []})).diagnosis.verdict == (
        "Nothing has been recorded yet: no step of the training has ended since `attach`."
    )
    with pytest.raises(RunLogError, match="not a run folder"):
        analyze(tmp_path / "none")
