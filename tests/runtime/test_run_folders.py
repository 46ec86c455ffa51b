"""Runs never share a folder, and names of runs are never the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stabwatch
from stabwatch.runlog import find_runs, read_run
from stabwatch.runlog.lock import RunLock
from stabwatch.runtime.run_metadata import as_folder_name

WRITER = """
import sys, time
from pathlib import Path
from stabwatch.runlog.lock import RunLock
lock = RunLock.take(Path(sys.argv[1]))
print("locked" if lock else "busy", flush=True)
time.sleep(60)
"""


def trial(**settings) -> stabwatch.Watch:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = stabwatch.attach(model, optimizer, agent=False, verbose=False, every_step=True, **settings)
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return watch


def test_a_sweep_in_one_process_has_a_folder_for_each_trial(tmp_path) -> None:
    for _ in range(6):
        trial(root=str(tmp_path)).detach()
    assert [len(read_run(run).steps) for run in find_runs([tmp_path])] == [3] * 6


def test_the_processes_of_a_slurm_job_have_names_of_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "417")
    watches = [trial(root=str(tmp_path)) for _ in range(4)]
    names = {watch.run for watch in watches}
    for watch in watches:
        watch.detach()
    assert len(names) == 4 and all(name.startswith("slurm-417-") for name in names)


def test_two_watches_on_one_folder_are_two_runs(tmp_path, capsys) -> None:
    first, second = (trial(run_dir=tmp_path / "run", run="mine") for _ in range(2))
    assert (first.run, second.run) == ("mine", "mine-2")
    assert second.run_dir == tmp_path / "run-2"
    said = capsys.readouterr().err
    assert f"another run is being written to {tmp_path / 'run'}; this one goes to {tmp_path / 'run-2'}" in said
    for watch in (first, second):
        watch.detach()
        assert len(read_run(watch.run_dir).steps) == 3 and read_run(watch.run_dir).meta.run == watch.run


def test_a_folder_whose_run_has_ended_may_be_used_again(tmp_path) -> None:
    trial(run_dir=tmp_path / "run").detach()
    again = trial(run_dir=tmp_path / "run")
    again.detach()
    assert again.run_dir == tmp_path / "run"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_process(tmp_path, how) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        assert RunLock.take(tmp_path / "run") is None
        os.kill(other.pid, how)
        other.wait(timeout=60)
    lock = RunLock.take(tmp_path / "run")
    assert lock is not None
    lock.release()
    lock.release()


def test_a_file_system_without_locks_excludes_nothing(tmp_path, monkeypatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert RunLock.take(tmp_path / "run") is not None
    assert RunLock.take(tmp_path / "run") is not None


@pytest.mark.parametrize("name", ["file/run", "long" * 100, "null\0byte"])
def test_a_folder_that_cannot_be_made_is_replaced_and_said(name, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    watch = trial(run_dir=tmp_path / name)
    assert "cannot be made" in capsys.readouterr().err and Path(watch.run_dir).is_dir()
    watch.detach()
    assert len(read_run(watch.run_dir).steps) == 3


def test_the_working_directory_can_be_a_run_folder_and_be_taken(tmp_path, monkeypatch) -> None:
    """`Path(".")` has no name that a suffix could follow."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    watches = [trial(run_dir=".") for _ in range(2)]
    for watch, name in zip(watches, ("here", "here-2"), strict=True):
        watch.detach()
        assert len(read_run(tmp_path / name).steps) == 3


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("a/b", "a-b"),
        ("../up", "up"),
        ("x\0y", "x-y"),
        ("é" * 200, "é" * 50),
        ("run 7", "run 7"),
        ("a.b", "a.b"),
        ("..", ""),
    ],
)
def test_a_name_is_one_folder_below_the_root(name, folder):
    assert as_folder_name(name) == folder


@pytest.mark.parametrize("name", ["../up", "a/b", "x\0y", "é" * 200])
def test_a_run_of_any_name_has_a_folder_below_the_root(tmp_path, name, capsys):
    watch = trial(root=str(tmp_path / "root"), run=name)
    watch.detach()
    assert Path(watch.run_dir).parent == tmp_path / "root" and watch.run == Path(watch.run_dir).name
    assert len(read_run(watch.run_dir).steps) == 3
    assert "cannot be that of a folder" in capsys.readouterr().err


def test_a_program_that_changes_its_folder_keeps_its_log(tmp_path, monkeypatch, capsys):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = stabwatch.attach(model, optimizer, agent=False)
    for step in range(6):
        if step == 2:
            monkeypatch.chdir(tmp_path / "there")
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
    watch.detach()
    assert watch.run_dir.parent == tmp_path / "here" / "stabwatch-runs"
    assert len(read_run(watch.run_dir).steps) == 6 and not any((tmp_path / "there").iterdir())
    assert f"run log in stabwatch-runs/{watch.run}\n" in capsys.readouterr().err
