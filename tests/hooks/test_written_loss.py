"""Losses that a program writes by itself are seen in the graph as those of torch are in their call."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.runlog import read_run

STEPS = 4
SIGNALS = ("compared_loss", "error_to_variance_ratio", "compared_mean", "target_rms")


def _logged(tmp_path, loss, model=None):
    """The last value of each signal of a short training."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False, every_step=True)
    for _ in range(STEPS):
        x = torch.randn(32, 5)
        optimizer.zero_grad()
        loss(model(x), x.sum(1) + 3).backward()
        optimizer.step()
    watch.detach()
    keys = {}
    for batch in read_run(tmp_path / "run").blocks:
        keys |= {key.signal: float(value) for key, value in zip(batch.layout.keys, batch.values[-1], strict=True)}
    assert keys["probe_errors_total"] == 0
    return keys


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """What `mse_loss` shows."""
    return _logged(tmp_path_factory.mktemp("known"), lambda out, y: F.mse_loss(out[:, 0], y))


WRITTEN = {
    "power": lambda out, y: ((out[:, 0] - y) ** 2).mean(),
    "reversed": lambda out, y: (y - out[:, 0]).pow(2).mean(),
    "square": lambda out, y: torch.square(out.squeeze(1) - y).mean(),
    "sum": lambda out, y: ((out.flatten() - y) ** 2).sum() / len(y),
    "number_first": lambda out, y: (torch.rsub(out.view(-1), y) ** 2).mean(),
    "averaged_outside": lambda out, y: F.mse_loss(out[:, 0], y, reduction="none").mean(),
}


@pytest.mark.parametrize("loss", WRITTEN.values(), ids=WRITTEN)
def test_a_squared_difference_shows_what_mse_loss_shows(loss, known, tmp_path):
    found = _logged(tmp_path, loss)
    assert [found[s] for s in SIGNALS] == pytest.approx([known[s] for s in SIGNALS], rel=1e-4)


def test_an_absolute_difference_shows_what_l1_loss_shows(tmp_path):
    known = _logged(tmp_path / "a", lambda out, y: F.l1_loss(out[:, 0], y))
    found = _logged(tmp_path / "b", lambda out, y: (out[:, 0] - y).abs().mean())
    assert [found[s] for s in SIGNALS] == pytest.approx([known[s] for s in SIGNALS], rel=1e-4)


EXPANDED = {
    "column": lambda out, y: ((out - y) ** 2).mean(),
    "target_is_a_column": lambda out, y: (out.squeeze(1) - y[:, None]).abs().mean(),
}


@pytest.mark.parametrize("loss", EXPANDED.values(), ids=EXPANDED)
def test_each_output_is_compared_with_every_target(loss, tmp_path):
    assert _logged(tmp_path, loss)["loss_broadcast_factor"] == 32


OTHERS = {
    "pairs_on_purpose": lambda out, y: ((out[:, 0][:, None] - y[None]) ** 2).mean(),
    "two_outputs": lambda out, y: ((out[:16] - out[16:]) ** 2).mean(),
    "of_something_else": lambda out, y: ((out.exp() - y[:, None]) ** 2).mean(),
    "exponents": lambda out, y: ((out[:, 0] - y) ** torch.full((32,), 2.0)).mean(),
    "cubes": lambda out, y: ((out[:, 0] - y) ** 3).mean(),
}


@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_other_losses_are_left_alone(loss, tmp_path):
    found = _logged(tmp_path, loss)
    assert all(math.isnan(found.get(s, math.nan)) for s in (*SIGNALS, "loss_broadcast_factor"))


def test_an_output_that_was_written_into_is_not_taken_for_what_was_compared(tmp_path):
    found = _logged(tmp_path, lambda out, y: ((out.mul_(2)[:, 0] - y) ** 2).mean())
    assert math.isnan(found.get("compared_loss", math.nan))


def test_a_root_without_a_graph_is_no_error(tmp_path):
    """A loss that was made of a number, and the edge of a graph in its place."""
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False, every_step=True)
    for _ in range(STEPS):
        out = model(torch.randn(32, 5))
        torch.tensor(out.mean().item(), requires_grad=True).backward()
        loss = (out**2).mean()
        torch.autograd.backward(torch.autograd.graph.get_gradient_edge(loss), torch.ones(()))
        optimizer.step()
    watch.detach()
    errors = read_run(tmp_path / "run").series("probe_errors_total")[1]
    assert not errors.any()
