"""A run that goes on from a checkpoint goes on in its log."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from stabwatch.agent.state import Follower
from stabwatch.analysis.analyze import analyze
from stabwatch.errors import ConfigError
from stabwatch.exporters.registry import SINKS
from stabwatch.exporters.sink import write_run
from stabwatch.runlog import RunLog, read_run
from stabwatch.runlog.downsample import load
from stabwatch.runlog.stacks import Place, Stand, write_stand
from tests.processes import run_python

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
    done = run_python("-c", TRAIN, first, last, end, kwargs, cwd=folder)
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
    stand = Stand(1, 2, "raised", 12, 0.0, 0.0, 0.0, place=Place("train.py", 9, "step"), error="ValueError: boom")
    write_stand(folder, 1, 1, stand.to_json())
    (told,) = analyze(folder).notes
    assert told.startswith("Attempt 1 ended at step 11: rank 1 raised ValueError: boom at train.py:9, in `step`; ")


@pytest.mark.parametrize("kwargs", ["{'resume': 'auto'}", "{'resume': 'auto', 'run': 'other'}"])
def test_a_finished_run_is_not_gone_on_with(tmp_path, kwargs: str) -> None:
    _train(tmp_path, 0, 2, "finish", "{}")
    assert "no run to go on with" in _train(tmp_path, 0, 2, "finish", kwargs)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_run_with_another_name_is_not_gone_on_with(tmp_path) -> None:
    _train(tmp_path, 0, 2, "kill", "{'run': 'one'}")
    assert "no run to go on with" in _train(tmp_path, 2, 4, "finish", "{'run': 'two', 'resume': 'auto'}")
    assert "attempt 2" in _train(tmp_path, 2, 4, "finish", "{'run': 'one', 'resume': 'auto'}")


def _attempts(attach, folder: Path, *spans: tuple[int, int]) -> None:
    """Several attempts of one run, each over steps [first, last)."""
    for number, (first, last) in enumerate(spans):
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        watch = attach(model, optimizer, run_dir=folder, first_step=first)
        for step in range(first, last):
            watch.log(mark=100.0 * number + step)
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        watch.detach()


def test_what_was_trained_again_is_shown_once_everywhere(attach, tmp_path) -> None:
    folder = tmp_path / "run"
    _attempts(attach, folder, (0, 8), (5, 10))
    marks = [0.0, 1, 2, 3, 4, 105, 106, 107, 108, 109]
    run = read_run(folder)
    assert (run.steps.tolist(), run.superseded) == (list(range(10)), 3)
    assert run.series("logged_value", "mark")[1].tolist() == marks
    assert load(RunLog(folder))[0].series("logged_value", "mark")[1].tolist() == marks
    out = io.BytesIO()
    write_run(RunLog(folder), SINKS["csv"].make(out, wide=True))
    head, *rows = csv.reader(out.getvalue().decode().splitlines())
    (column,) = (i for i, name in enumerate(head) if "mark" in name)
    assert [float(row[column]) for row in rows] == marks
    follower = Follower(folder, writes=False, charted=frozenset({"logged_value"}))
    follower.poll()
    points = follower.history.since(0, 0)
    (column,) = (i for i, key in enumerate(follower.history.keys) if key.layer == "mark")
    assert points.steps == list(range(10))
    assert points.values[:, column].tolist() == marks


def test_the_page_forgets_what_is_trained_again_also_while_it_follows(attach, tmp_path) -> None:
    folder = tmp_path / "run"
    _attempts(attach, folder, (0, 8))
    follower = Follower(folder, writes=False)
    follower.poll()
    epoch = follower.history.epoch
    assert follower.history.since(0, 0).steps == list(range(8))
    _attempts(attach, folder, (5, 6))
    follower.poll()
    assert follower.history.since(0, 0).steps == list(range(6))
    assert follower.history.epoch > epoch, "what was sent before has changed"


def test_attempts_that_go_on_supersede_nothing(attach, tmp_path) -> None:
    folder = tmp_path / "run"
    _attempts(attach, folder, (0, 4), (4, 8))
    run = read_run(folder)
    assert (run.steps.tolist(), run.superseded) == (list(range(8)), 0)


def _model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(4, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def _steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_state_of_a_checkpoint_takes_the_run_on(attach, capsys) -> None:
    model, optimizer = _model()
    watch = attach(model, optimizer, verbose=True)
    _steps(model, optimizer, 5)
    state = json.loads(json.dumps(watch.state_dict()))
    assert state["step"] == 5
    _steps(model, optimizer, 3)
    watch.detach()
    model, optimizer = _model()
    again = attach(model, optimizer, verbose=True)
    made = again.run_dir
    again.load_state_dict(state)
    assert (again.run, again.run_dir, again.step) == (watch.run, watch.run_dir, 5)
    _steps(model, optimizer, 2)
    again.detach()
    assert "attempt 2" in capsys.readouterr().err
    run = read_run(watch.run_dir)
    assert run.steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert [e.data["attempt"] for e in run.events if e.kind == "start"] == [1, 2]
    assert [e.data["reason"] for e in read_run(made).events if e.kind == "end"] == ["replaced"]


def test_a_state_whose_folder_is_given_or_gone(attach, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    model, optimizer = _model()
    watch = attach(model, optimizer, run_dir=folder)
    _steps(model, optimizer, 3)
    state = watch.state_dict()
    watch.detach()
    model, optimizer = _model()
    again = attach(model, optimizer, run_dir=folder)
    again.load_state_dict(state)
    assert (again.run_dir, again.step) == (folder, 3)
    _steps(model, optimizer, 2)
    again.detach()
    assert read_run(folder).steps.tolist() == [0, 1, 2, 3, 4]
    capsys.readouterr()
    model, optimizer = _model()
    elsewhere = attach(model, optimizer)
    own = elsewhere.run_dir
    elsewhere.load_state_dict({**state, "run_dir": str(tmp_path / "gone")})
    assert f"no run in {tmp_path / 'gone'}" in capsys.readouterr().err
    _steps(model, optimizer, 2)
    elsewhere.detach()
    assert read_run(own).steps.tolist() == [3, 4]


def test_a_state_that_comes_too_late_or_is_none(attach, capsys) -> None:
    model, optimizer = _model()
    watch = attach(model, optimizer)
    state = watch.state_dict()
    _steps(model, optimizer, 2)
    watch.load_state_dict({**state, "step": 40})
    assert "load_state_dict is ignored" in capsys.readouterr().err
    assert watch.state_dict()["step"] == 2
    with pytest.raises(ConfigError, match=r"Watch\.state_dict"):
        watch.load_state_dict({"epoch": 3})


def test_a_folder_without_a_run_is_told(attach, tmp_path, capsys) -> None:
    model, optimizer = _model()
    watch = attach(model, optimizer, run_dir=None, resume=tmp_path / "typo")
    assert f"there is no run in {tmp_path / 'typo'} to go on with; a new one begins there" in capsys.readouterr().err
    assert watch.run_dir == tmp_path / "typo"
    watch.detach()
    attach(*_model(), run_dir=None, resume=tmp_path / "typo")
    assert "there is no run" not in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False], ids=["in its log", "in another"])
def test_rules_in_the_training_process_know_the_run_before(kept, attach, tmp_path) -> None:
    """A loss 30 times its level at once after a resume: a spike for who knows the level."""
    fired: list[str] = []
    for first, last, scale in ((0, 120, 1.0), (120, 150, 30.0)):
        model, optimizer = _model()
        folder = tmp_path / ("run" if kept else f"run{first}")
        watch = attach(model, optimizer, run_dir=folder, first_step=first, on_alert=lambda a: fired.append(a.rule))
        torch.manual_seed(0)
        for _ in range(first, last):
            watch.log(loss=scale * (1 + 0.01 * torch.rand(()).item()))
            _steps(model, optimizer, 1)
        watch.detach()
    assert any(name.startswith("Loss") for name in fired) == kept
