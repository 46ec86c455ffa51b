"""The Taylor guard in a data-parallel job: two real gloo processes."""

from __future__ import annotations

import json

import pytest

from tests.processes import run_ranks


def _job(folder):
    outs = run_ranks("tests.guards.ranks_job", 2, folder / "store")
    (folder / "found.json").write_text(json.dumps([(json.loads(out.split("found ")[1]), err) for out, err in outs]))


@pytest.fixture
def job(once):
    """What each rank found and wrote to its log."""
    return json.loads((once("guard", _job) / "found.json").read_text())


@pytest.mark.parametrize("mode", ["wrapped", "inner"])
def test_replicas_stay_equal_when_a_step_is_shortened(job, mode):
    for found, _ in job:
        assert found[mode]["apart"] == 0 and found[mode]["limited"] >= 1
        assert found[mode]["loss"] < 2


def test_a_guard_that_fails_on_one_rank_goes_off_on_all_and_hangs_nobody(job):
    for found, _ in job:
        assert found["broken"]["apart"] == 0 and found["broken"]["limited"] == 0
    assert ["the Taylor guard failed" in err for _, err in job] == [False, True]


def test_a_guard_on_one_rank_alone_does_nothing_and_says_so(job):
    assert all(found["alone"]["apart"] == 0 and found["alone"]["limited"] == 0 for found, _ in job)
    assert ["the Taylor guard does nothing" in err for _, err in job] == [True, False]
