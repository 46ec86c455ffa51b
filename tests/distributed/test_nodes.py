"""Two machines with a file system and a clock each: one run, with the times of rank 0 and the evidence of all ranks."""

from __future__ import annotations

import time

import numpy as np

from stabwatch.analysis.analyze import analyze
from stabwatch.runlog import read_run
from tests.distributed.node_job import AHEAD, AT, STEPS, WORLD
from tests.processes import run_ranks


def test_ranks_of_two_machines_are_one_run(tmp_path):
    began = time.time()
    outs = run_ranks("tests.distributed.node_job", WORLD, tmp_path / "store", tmp_path)
    ended = time.time()
    assert all("Traceback" not in err for _, err in outs)
    assert not list((tmp_path / "machine1").iterdir()), "rank 0 alone writes"

    folder = tmp_path / "machine0" / "run"
    run = read_run(folder)
    assert list(run.steps) == list(range(STEPS))
    said = [event.data for event in run.events if event.kind == "ranks"]
    assert [(s["covered"], s["world"], s["missing"]) for s in said] == [(WORLD, WORLD, [])]
    times = np.concatenate([block.times for block in run.blocks])
    assert ended - began < AHEAD / 2
    assert (np.diff(times) >= 0).all() and began <= times[0] and times[-1] <= ended
    assert all(began <= event.time <= ended for event in run.events)

    steps, most = run.series("rank_busy_max_seconds")
    assert len(steps) and most.max() < ended - began, "durations are not of the clock that is ahead"
    _, ranks = run.series("rank_loss_highest")
    assert set(ranks.astype(int)) > {0, 1} or set(ranks.astype(int)) & {2, 3}, "ranks of both machines are compared"

    found = analyze(folder)
    [cause] = [c for c in found.diagnosis.causes if c.name == "NonFinite"]
    text = " ".join(cause.evidence)
    last = WORLD - 1
    assert f"Rank {last} counted the most non-finite values at first" in text
    assert f"Batch of step {AT}: samples {WORLD * AT + last}; rank {last}; shard shard-{last}" in text
