"""Guards in a data-parallel job: two real gloo processes."""

from __future__ import annotations

import json

import pytest

from stabwatch.runlog import read_run
from tests.guards.ranks_job import GUARDS
from tests.processes import run_ranks


def _job(folder):
    outs = run_ranks("tests.guards.ranks_job", 2, folder / "store", folder)
    (folder / "found.json").write_text(json.dumps([(json.loads(out.split("found ")[1]), err) for out, err in outs]))


@pytest.fixture
def job(once):
    """What each rank found and wrote to its log, and the folder with the runs."""
    folder = once("guard", _job)
    return json.loads((folder / "found.json").read_text()), folder


@pytest.mark.parametrize("guard", GUARDS)
def test_no_guard_calls_a_collective_and_replicas_stay_equal(job, guard):
    for found, _ in job[0]:
        assert found["counts"] and found["guards"][guard] == {"apart": 0.0, "collectives": []}


def test_the_taylor_guard_is_off_with_several_ranks_and_says_so(job):
    found, folder = job
    assert ["the Taylor guard is off" in err for _, err in found] == [True, False]
    assert all("jobs of one rank only" in each["refusal"] for each, _ in found)
    for guard in GUARDS:
        events = [e for e in read_run(folder / guard).events if e.kind == "coverage"]
        said = [json.dumps(e.data["notes"]) for e in events]
        assert any("the Taylor guard is off" in reason for reason in said) == ("taylor" in guard), guard


def test_other_guards_work_beside_a_taylor_guard_that_is_off(job):
    steps, _ = read_run(job[1] / "skip_step,taylor,snapshot,lr_backoff").series("guard_interventions_total")
    assert len(steps) > 0
