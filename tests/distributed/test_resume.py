"""A job of several ranks goes on from the state in its checkpoint: every rank takes the same way."""

from __future__ import annotations

import pytest

from stabwatch.runlog import find_runs, read_run
from tests.processes import run_ranks


@pytest.mark.parametrize("given", ["given", "made"])
def test_all_ranks_go_on_in_the_log_of_rank_0(given, tmp_path):
    out = tmp_path / "out"
    run_ranks("tests.distributed.resume_job", 2, 2, tmp_path / "store", out, given)
    run = max(map(read_run, find_runs([out])), key=lambda run: len(run.steps))
    assert run.steps.tolist() == list(range(10))
    assert not [event.data for event in run.events if event.kind == "error"]
    assert run.series("gradient_norm")[0].tolist() == list(range(10))
