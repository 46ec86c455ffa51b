"""Optimizers that evaluate the loss many times in a step are in health where they converge within some steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.analysis import analyze
from stabwatch.runlog import read_run


def _made(name):
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    if name == "linear":
        return nn.Linear(8, 1), lambda m: F.mse_loss(m(x)[:, 0], x.sin().sum(1) + 0.1 * torch.randn(200)), {}
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    target = x.sin().sum(1)
    return model, lambda m: F.mse_loss(m(x)[:, 0], target), {"line_search_fn": "strong_wolfe"}


@pytest.mark.parametrize("name", ["linear", "network"])
def test_a_full_batch_that_is_solved_in_some_steps_rings_nothing(name, tmp_path):
    model, loss_of, options = _made(name)
    optimizer = torch.optim.LBFGS(model.parameters(), **options)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(60):
        optimizer.step(closure)
    watch.detach()
    passes = read_run(watch.run_dir).series("closure_passes")[1]
    assert passes[0] > 3
    found = analyze(watch.run_dir)
    assert not found.errors and not found.diagnosis.causes


def test_one_pass_in_a_closure_is_a_usual_step(tmp_path):
    """Trainers give each optimizer a closure: a rate of 0 is told all the same."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False, every_step=True)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).pow(2).mean()
        loss.backward()
        return loss

    for _ in range(12):
        optimizer.step(closure)
    watch.detach()
    assert set(read_run(watch.run_dir).series("closure_passes")[1]) == {1.0}
    assert "NoUpdates" in {alert.rule for alert in analyze(watch.run_dir).alerts}
