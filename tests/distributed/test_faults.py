"""One rank is late, absent, killed, stopped or different: the others train on, bit for bit, and the log says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stabwatch.runlog import read_run
from tests.distributed.fault_job import AT, STEPS
from tests.processes import run_python
from tests.sampling import sample

ENDED, START, GONE = "its watch has ended", "attached at another step", "stopped, killed or cannot be reached"
EXPECTED = {
    "late": (0, START), "late0": (0, START), "never": (0, "it is not watched"),
    "include": (0, "it measures other things"),
    "detach": (AT, ENDED), "error": (AT, ENDED), "step_error": (AT + 3, ENDED), "join": (STEPS - 6, ENDED),
    "killed": (AT, GONE), "stopped": (AT, GONE),
}  # fmt: skip
"""Fault -> from which step on the odd rank is missing, and part of the reason. A probe is off after three errors."""
GROUPS = [("late", "late0"), ("never", "include"), ("detach", "error"), ("step_error", "join"), ("killed", "stopped")]
PATIENCE = 5.0
"""Seconds a step may take on a busy machine: far below what waiting for a lost rank would cost."""


@pytest.mark.parametrize("faults", sample(GROUPS, ("detach", "error"), ("killed", "stopped")), ids="-".join)
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_others_train_on_and_the_log_says_who_is_missing(world, faults, tmp_path):
    done = run_python("-m", "tests.distributed.fault_job", world, tmp_path, *faults, timeout=230)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["fault"] for result in results] == list(faults), done.stderr[-2000:]
    for result in results:
        fault, watched, unwatched = result["fault"], result["watched"], result["unwatched"]
        odd = 0 if fault == "late0" else world - 1
        gone = fault in ("killed", "stopped")
        assert [each is None for each in watched] == [gone and rank == odd for rank in range(world)], fault
        for a, b in zip(watched, unwatched, strict=True):
            assert a is None or (a["digest"] == b["digest"] and a["slowest"] < PATIENCE), fault
        _check_log(tmp_path / fault, fault, world)


def test_a_probe_that_fails_on_one_rank_leaves_its_values_out_and_rank_0_says_whose_it_was(tmp_path):
    """A mean over the other ranks would be another value."""
    done = run_python("-m", "tests.distributed.fault_job", 2, tmp_path, "probe", timeout=230)
    [result] = [json.loads(line) for line in done.stdout.splitlines()]
    for a, b in zip(result["watched"], result["unwatched"], strict=True):
        assert a["digest"] == b["digest"] and not a["coverage"]["missing"]
    run = read_run(tmp_path / "probe")
    errors = [event.data for event in run.events if event.kind == "error"]
    assert [(error["rank"], error["probe"], error["disabled"]) for error in errors] == [
        (1, "activation", False), (1, "activation", True),
    ]  # fmt: skip
    assert all("on rank 1: RuntimeError: planted" in error["message"] for error in errors)
    assert sum(run.series("probe_errors_total")[1]) == 3
    steps, _ = run.series("output_rms", "2")
    assert list(steps) == list(range(AT)), "what rank 0 measured alone is not the value of the step"
    assert len(run.series("loss")[0]) == STEPS and len(run.series("weight_rms", "2")[0]) == STEPS


def _check_log(folder: Path, fault: str, world: int) -> None:
    run = read_run(folder)
    last = [event for event in run.events if event.kind == "ranks"][-1]
    since, reason = EXPECTED[fault]
    assert last.data["world"] == world and last.data["covered"] == (1 if fault == "late0" else world - 1), fault
    assert last.data["since"] == since, fault
    for missing in last.data["missing"]:
        assert reason in missing["reason"], fault
    assert len(run.steps) == STEPS - (AT if fault == "late0" else 0), fault
    steps, differences = run.series("replica_difference_ratio", "2") if world > 2 else ([], [])
    assert fault == "late0" or world == 2 or len(steps) == STEPS
    assert fault in ("killed", "stopped") or not any(differences), fault
