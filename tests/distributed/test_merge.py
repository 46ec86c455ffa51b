"""Two real gloo processes: the values of the job are those of one process on the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stabwatch.demo import GPT, DemoConfig
from stabwatch.runlog import read_run
from stabwatch.signals import CATALOGUE
from tests.distributed.ddp_job import STEPS, batch

ROOT = Path(__file__).parents[2]


def _job(tmp_path, mode):
    command = [sys.executable, "-m", "tests.distributed.ddp_job"]
    ranks = [
        subprocess.Popen(
            [*command, str(r), "2", str(tmp_path / "store"), str(tmp_path / "run"), mode],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for r in range(2)
    ]  # fmt: skip
    outs = [rank.communicate(timeout=100) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outs
    return read_run(tmp_path / "run"), [int(out.split("collectives ")[1]) for out, _ in outs]


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


OF_A_RANK = ("host", "residual", "writer", "nonlinearity")
"""The host's own numbers are rank 0's; tokens are drawn, and gradients split into modes, within each rank's batch."""
ATOL = {"precision": 1e-3, "exponents": 0.05}  # one element on a boundary; gradients that are zero but for rounding


@pytest.mark.parametrize("mode", ["wrapped", pytest.param("inner", marks=pytest.mark.slow)])
def test_two_ranks_are_merged_by_the_laws_without_a_collective(mode, tmp_path, attach):
    log, collectives = _job(tmp_path, mode)
    whole = _single(attach)
    assert log.meta.world_size == 2
    assert collectives == [0, 0], "nothing of ours goes through the training's process group"
    [said] = [e for e in log.events if e.kind == "ranks"]
    assert (said.data["covered"], said.data["world"], said.data["since"]) == (2, 2, 0)
    first = 0
    compared = 0
    for key in whole.keys:
        if CATALOGUE[key.signal].tap in OF_A_RANK or key.signal.endswith(("_head", "_entropy_min", "_contraction")):
            continue  # two heads may tie within rounding; the least entropy is that of a rank's rows
        here, there = (dict(zip(*run.series(key.signal, key.layer), strict=True)) for run in (log, whole))
        assert here.keys() == there.keys(), key
        merged = [step for step in here if step >= first]
        atol = ATOL.get(CATALOGUE[key.signal].reduction, 1e-5)
        values, truth = ([run[step] for step in merged] for run in (here, there))
        np.testing.assert_allclose(values, truth, rtol=5e-3, atol=atol, err_msg=str(key))
        compared += bool(merged)
    assert compared > 100


def test_a_watch_on_one_rank_alone_hangs_nobody(tmp_path):
    log, collectives = _job(tmp_path, "alone")
    assert collectives == [0, 0]
    assert len(log.steps) == STEPS
