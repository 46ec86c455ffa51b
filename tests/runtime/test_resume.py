"""A run that goes on from a checkpoint goes on in its log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stabwatch.analysis.analyze import analyze
from stabwatch.runlog import read_run

TRAIN = """
import os, sys, torch, stabwatch
first, last, end, kwargs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], eval(sys.argv[4])
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
watch = stabwatch.attach(model, optimizer, agent=False, every_step=True, root="runs", first_step=first, **kwargs)
for _ in range(first, last):
    model(torch.ones(3, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
if end == "kill":
    watch._session._writer.close()
    os._exit(9)
watch.detach()
"""


def _train(folder: Path, first: int, last: int, end: str, kwargs: str = "{'resume': 'auto'}") -> str:
    command = [sys.executable, "-c", TRAIN, str(first), str(last), end, kwargs]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == (9 if end == "kill" else 0), done.stderr
    return done.stderr


def test_a_killed_run_goes_on_in_its_folder_and_steps_are_counted_once(tmp_path) -> None:
    assert "no run to go on with" in _train(tmp_path, 0, 12, "kill")
    assert "attempt 2" in _train(tmp_path, 8, 16, "finish")
    (folder,) = (tmp_path / "runs").iterdir()
    starts = [e for e in read_run(folder).events if e.kind == "start"]
    assert [(e.step, e.data["attempt"]) for e in starts] == [(0, 1), (8, 2)]
    found = analyze(folder)
    assert (found.records, found.first_step, found.last_step, found.ended) == (16, 0, 15, "finished")
    assert found.run.steps.tolist() == list(range(16))
    (told,) = found.notes
    assert "Attempt 1 ended at step 11" in told and told.endswith("attempt 2 went back to step 8.")


@pytest.mark.parametrize("kwargs", ["{'resume': 'auto'}", "{'resume': 'auto', 'run': 'other'}"])
def test_a_finished_run_is_not_gone_on_with(tmp_path, kwargs: str) -> None:
    _train(tmp_path, 0, 2, "finish", "{}")
    assert "no run to go on with" in _train(tmp_path, 0, 2, "finish", kwargs)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_run_with_another_name_is_not_gone_on_with(tmp_path) -> None:
    _train(tmp_path, 0, 2, "kill", "{'run': 'one'}")
    assert "no run to go on with" in _train(tmp_path, 2, 4, "finish", "{'run': 'two', 'resume': 'auto'}")
    assert "attempt 2" in _train(tmp_path, 2, 4, "finish", "{'run': 'one', 'resume': 'auto'}")
