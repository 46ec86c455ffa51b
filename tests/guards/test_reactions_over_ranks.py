"""Rank 0 judges, and all ranks of a data-parallel job do the same thing at the same step: two real gloo processes."""

from __future__ import annotations

import json

import pytest

from stabwatch.guards.broadcast import AHEAD
from stabwatch.runlog import read_run
from tests.guards.reactions_job import BROKEN
from tests.processes import run_ranks


def _job(folder):
    outs = run_ranks("tests.guards.reactions_job", 2, folder / "store", folder)
    (folder / "found.json").write_text(json.dumps([json.loads(out.split("found ")[1]) for out, _ in outs]))


@pytest.fixture
def job(once):
    """What each rank found, and the folder with the runs."""
    folder = once("reactions", _job)
    return json.loads((folder / "found.json").read_text()), folder


def test_replicas_are_rolled_back_together(job):
    found, folder = job
    for rank in found:
        assert rank["snapshot,lr_backoff"] == {"apart": 0.0, "finite": True, "stopped": None}
    events = [e for e in read_run(folder / "snapshot,lr_backoff").events if e.kind == "guard"]
    assert [e.data["did"] for e in events] == ["rolled back", "learning rate multiplied"]
    assert events[0].data["to_step"] == BROKEN and BROKEN + AHEAD <= events[0].step <= BROKEN + AHEAD + 10


def test_replicas_skip_the_same_step(job):
    found, folder = job
    for rank in found:
        assert rank["skip_step"] == {"apart": 0.0, "finite": True, "stopped": None}
    steps, counts = read_run(folder / "skip_step").series("guard_interventions_total")
    assert list(steps[counts > 0]) == [BROKEN] and counts.max() == 1


def test_all_ranks_stop_at_the_same_step(job):
    found, _ = job
    stopped = {rank["raise"]["stopped"] for rank in found}
    assert len(stopped) == 1 and BROKEN + AHEAD - 1 <= stopped.pop() < BROKEN + AHEAD + 10
