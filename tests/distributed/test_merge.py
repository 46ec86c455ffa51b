"""Two real gloo processes: the values of the job are those of one process on the whole batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stabwatch.demo import GPT, DemoConfig
from stabwatch.runlog import read_run
from stabwatch.signals import CATALOGUE
from tests.distributed.ddp_job import FIRST, STEPS, batch
from tests.processes import run_ranks


def _job(folder, *modes):
    """Runs a job, each mode with a run of its own in the folder; found.json has each rank's count of collectives."""
    outs = run_ranks("tests.distributed.ddp_job", 2, 2, folder / "store", folder, *modes)
    found = [json.loads(out.split("collectives ")[1]) for out, _ in outs]
    (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture
def merged(once):
    """merged(mode): the log of a job of two ranks, and how many collectives each rank called."""

    def of(mode):
        modes = (
            ("inner",) if mode == "inner" else ("wrapped", "numbered", "alone")
        )  # `inner` is for the slow tests only
        folder = once(f"merged-{modes[0]}", lambda folder: _job(folder, *modes))
        found = json.loads((folder / "found.json").read_text())
        return read_run(folder / mode), [rank[mode] for rank in found]

    return of


def _single(attach):
    torch.manual_seed(0)
    model = GPT(DemoConfig(width=32, layers=2, heads=2, context=16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer)
    for step in range(STEPS):
        rows = batch(step)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return attach.finish()


OF_A_RANK = ("host", "residual", "writer", "nonlinearity", "activation_gradient")
"""The host's own numbers are rank 0's; tokens are drawn, and gradients split into modes, within each rank's batch.
Gradients of activations are those of the loss whose backward pass runs: the mean over the rank's own batch."""
ATOL = {"precision": 1e-3, "exponents": 0.05}  # one element on a boundary; gradients that are zero but for rounding


@pytest.mark.parametrize("mode", ["wrapped", pytest.param("inner", marks=pytest.mark.slow)])
def test_two_ranks_are_merged_without_a_collective(mode, merged, attach):
    log, collectives = merged(mode)
    whole = _single(attach)
    assert log.meta.world_size == 2
    assert collectives == [0, 0], "nothing of stabwatch goes through the training's process group"
    [ranks] = [e for e in log.events if e.kind == "ranks"]
    assert (ranks.data["covered"], ranks.data["world"], ranks.data["since"]) == (2, 2, 0)
    compared = 0
    for key in whole.keys:
        signal = CATALOGUE[key.signal]
        if signal.tap in OF_A_RANK or key.signal.endswith(("_head", "_entropy_min", "_contraction")):
            continue  # two heads may tie within rounding; the least entropy is that of a rank's rows
        if signal.reduction == "attention_sink" or key.signal == "target_common_ratio":
            continue  # of the first samples, and of the most frequent target, of each rank's batch
        here, there = (dict(zip(*run.series(key.signal, key.layer), strict=True)) for run in (log, whole))
        assert here.keys() == there.keys(), key
        atol = ATOL.get(CATALOGUE[key.signal].reduction, 1e-5)
        values, truth = ([run[step] for step in here] for run in (here, there))
        np.testing.assert_allclose(values, truth, rtol=5e-3, atol=atol, err_msg=str(key))
        compared += bool(here)
    assert compared > 100


def test_a_watch_on_one_rank_alone_hangs_nobody(merged):
    log, collectives = merged("alone")
    assert collectives == [0, 0]
    assert len(log.steps) == STEPS


def test_ranks_whose_steps_are_numbered_by_the_training_loop_merge(merged):
    log, _ = merged("numbered")
    assert list(log.steps) == [FIRST + 10 * step for step in range(STEPS)]
    [ranks] = [e for e in log.events if e.kind == "ranks"]
    assert (ranks.step, ranks.data["covered"], ranks.data["since"]) == (FIRST, 2, FIRST)
    unnumbered, _ = merged("wrapped")
    np.testing.assert_array_equal(log.series("loss")[1], unnumbered.series("loss")[1])
