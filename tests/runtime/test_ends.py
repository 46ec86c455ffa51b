"""How a run ends: finished, interrupted, replaced, by an exception, or killed with nobody there to write it."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import stabwatch
from stabwatch.analysis import analyze
from stabwatch.cli.doctor.run import check_run
from stabwatch.runlog import read_run, writer
from stabwatch.runtime.run_metadata import LONGEST_ERROR, how_it_ended, told
from tests.processes import run_python

LOOP = """
import os, signal, sys, torch, stabwatch
from torch import nn
torch.manual_seed(0)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
watch = stabwatch.attach(model, optimizer, run_dir=sys.argv[1], agent=False, every_step=True)
for step in range(60):
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
ENDS = {
    "finished": "",
    "interrupted": "raise KeyboardInterrupt",
    "exception": "import sys, types; sys.modules['IPython'] = types.SimpleNamespace(get_ipython=lambda: None)\n"
    "raise ValueError('no')",
    "killed": "import time; time.sleep(2); os.kill(os.getpid(), signal.SIGKILL)",
    "replaced": "stabwatch.attach(model, optimizer, run_dir=sys.argv[1] + '-next', agent=False).detach()",
}


IN_CHILDREN = f"""
import sys
from torch import multiprocessing

def train(rank, folder, last):
    sys.argv[1] = folder
    exec({LOOP!r} + last, {{}})

root, fork = sys.argv[1], multiprocessing.get_context("fork")
for name, last in (("finished", ""), ("error", "raise ValueError('no')"), ("code", "sys.exit(3)")):
    child = fork.Process(target=train, args=(0, f"{{root}}/{{name}}", last))
    child.start()
    child.join()
    print(child.exitcode)
try:
    multiprocessing.start_processes(train, (f"{{root}}/spawned", "raise ValueError('no')"), 1, start_method="fork")
except multiprocessing.ProcessRaisedException:
    print("raised")
"""


LEAVES = {
    "message": ("sys.exit('no data')", 1, "SystemExit: no data"),
    "imported": ("leave(3)", 3, "SystemExit: 3"),
    "builtin": ("exit(4)", 4, "SystemExit: 4"),
    "argparse": ("import argparse; argparse.ArgumentParser().parse_args(['--nope'])", 2, "SystemExit: 2"),
    "zero": ("sys.exit(0)", 0, None),
    "caught": ("try: sys.exit(5)\nexcept SystemExit: pass", 0, None),
    "in a thread": ("import threading; t = threading.Thread(target=sys.exit, args=(6,)); t.start(); t.join()", 0, None),
    "at exit": ("import atexit; atexit.register(sys.exit, 7)", 0, None),
}
"""How a program leaves, with which code, and what its run says."""
IN_FORKS = f"""
import os, sys, torch
from sys import exit as leave
for name, last in { ({name: last for name, (last, _, _) in LEAVES.items()})!r}.items():
    if not os.fork():
        break
    print(name, os.waitstatus_to_exitcode(os.wait()[1]), sep="=", flush=True)
else:
    os._exit(0)
sys.argv[1] = sys.argv[1] + "/" + name
exec({LOOP!r})
exec(last)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folder by the way in which its training ended; no agent was there."""
    root = tmp_path_factory.mktemp("ends")
    codes = {name: run_python("-c", LOOP + last, root / name).returncode for name, last in ENDS.items()}
    assert codes["killed"] == -signal.SIGKILL and codes["finished"] == 0 and codes["exception"] == 1
    return {name: root / name for name in ENDS}


@pytest.mark.parametrize("name", ENDS)
def test_analyze_and_doctor_say_how_a_run_ended(ended: dict[str, Path], name: str) -> None:
    failed = name in ("exception", "killed")
    found = analyze(ended[name])
    assert found.ended == name
    stops = [i for i in found.incidents if i.condition == "TrainingStopped"]
    assert [i.severity for i in stops] == ["critical"] * failed
    assert found.exit_code == failed
    (check,) = [c for c in check_run(ended[name]) if c.name == "end"]
    assert check.state == ("bad" if failed else "ok") and check.found.startswith(name)


def test_a_child_of_multiprocessing_says_what_has_left_its_function(tmp_path: Path) -> None:
    """`multiprocessing` catches it, and so does torch's `spawn`; a forked child leaves without `atexit`."""
    done = run_python("-c", IN_CHILDREN, tmp_path)
    assert done.stdout.split() == ["0", "1", "3", "raised"], done.stderr
    ends = {path.name: next(e.data for e in read_run(path).events if e.kind == "end") for path in tmp_path.iterdir()}
    assert {name: end["reason"] for name, end in ends.items()} == {
        "finished": "finished", "error": "exception", "code": "exception", "spawned": "exception",
    }  # fmt: skip
    assert ends["error"]["error"] == ends["spawned"]["error"] == "ValueError: no"


def test_a_program_that_leaves_with_a_code_has_not_finished(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IN_FORKS, tmp_path], capture_output=True, text=True, timeout=100)
    assert dict(line.split("=") for line in done.stdout.split("\n") if line) == {
        name: str(code) for name, (_, code, _) in LEAVES.items()
    }, done.stderr
    for name, (_, code, told_) in LEAVES.items():
        (end,) = [e.data for e in read_run(tmp_path / name).events if e.kind == "end"]
        assert (end["reason"], end.get("error")) == ("exception" if code else "finished", told_), name


def test_sys_exit_is_the_interpreter_s_own_again_after_the_last_watch(attach) -> None:
    own = sys.exit
    watch = attach(nn.Linear(2, 2))
    with pytest.raises(SystemExit) as raised:
        sys.exit("no")
    assert type(raised.value) is SystemExit and raised.value.code == "no" and sys.exit is not own
    pickle.loads(pickle.dumps(raised.value))
    watch.detach()
    assert sys.exit is own


def test_a_killed_run_says_when_it_was_last_heard_of(ended: dict[str, Path]) -> None:
    run = read_run(ended["killed"])
    assert not any(event.kind == "end" for event in run.events), "nobody was there to write it"
    (stop,) = [i for i in analyze(ended["killed"]).incidents if i.condition == "TrainingStopped"]
    assert stop.first_step == run.steps[-1]
    assert f"ended at step {run.steps[-1]}: killed (process" in stop.text
    assert "no longer exists; the last record is of " in stop.text


def test_what_leaves_the_training_gives_the_reason() -> None:
    assert how_it_ended(None) == how_it_ended(SystemExit(0)) == how_it_ended(SystemExit()) == "finished"
    assert how_it_ended(KeyboardInterrupt()) == "interrupted"
    assert how_it_ended(SystemExit(3)) == how_it_ended(ValueError("no")) == "exception"


def test_a_run_that_ends_before_its_records_are_written_reports_its_coverage(tmp_path: Path, monkeypatch) -> None:
    """Three fast steps are over while the writer still gathers."""
    monkeypatch.setattr(writer, "PAUSE", 60.0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, every_step=True)
    for _ in range(3):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    watch.detach()
    run = read_run(tmp_path / "run")
    assert len(run.steps) == 3
    assert [event.kind for event in run.events][-2:] == ["coverage", "end"]


def test_an_error_is_told_in_one_line_of_a_sensible_length():
    assert told(MemoryError()) == "MemoryError"
    assert told(ValueError("one\n  two")) == "ValueError: one two"
    assert len(told(RuntimeError("x" * 5000))) < LONGEST_ERROR + 20
