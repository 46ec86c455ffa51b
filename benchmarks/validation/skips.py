"""Do scaled skip connections make features and gradients of a U-shaped network go up and down less?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from benchmarks.report import table
from stabwatch.runlog import read_run

TITLE = "Scaled skip connections (ScaleLong)"
CLAIM = """ScaleLong, arXiv:2310.13545 [abstract]: in a U-Net of a diffusion model the coefficients of the long skip connections decide how far hidden features and
gradients oscillate; smaller ones (kappa to the power of the depth) bound both, and make training more robust."""
DEPTH, WIDTH, STEPS, WINDOW, KAPPAS = 6, 48, 260, 64, (1.0, 0.7, 0.5)
SETUP = f"""A U-shaped network of {DEPTH} + {DEPTH} residual MLP blocks of width {WIDTH} without norms; each of the second half also gets the output of its partner in the first,
times kappa to the power of how far it is from the end. It learns to tell the noise in points of a mixture of eight, Adam 1e-3, {STEPS} batches of 128.
`skip_main_ratio`, and the range of `output_rms` and of `activation_gradient_rms` over the last {WINDOW} steps over their mean (as the dashboard of
the layers shows it), for the first and last blocks of the second half. Two seeds, means."""


class Block(nn.Module):
    """A residual MLP; with a skip connection, of its sum with the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, WIDTH) each."""
        x = x if skip is None else x + skip
        return x + self.outside(F.gelu(self.inside(x)))


class UShaped(nn.Module):
    """Both halves."""

    def __init__(self, kappa: float) -> None:
        super().__init__()
        self.kappa = kappa
        self.first, self.last = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.down, self.up = (nn.ModuleList(Block() for _ in range(DEPTH)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3) points and times -> (B, 2) noise."""
        x = self.first(x)
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        for i, block in enumerate(self.up):
            x = block(x, self.kappa ** (DEPTH - 1 - i) * kept.pop())
        return self.last(x)


def train(kappa: float, seed: int) -> tuple[Any, float]:
    """The run log, and the mean of the last losses."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    model, losses = UShaped(kappa), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with stabwatch.attach(model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True):
            for _ in range(STEPS):
                at = 2 * torch.pi * torch.randint(8, (128, 1), generator=draw) / 8
                noise, time = torch.randn(128, 2, generator=draw), torch.rand(128, 1, generator=draw)
                x = (1 - time).sqrt() * torch.cat((at.cos(), at.sin()), 1) + time.sqrt() * noise
                loss = F.mse_loss(model(torch.cat((x, time), 1)), noise)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return read_run(path), float(np.mean(losses[-50:]))


def spread(log: Any, signal: str, layer: str) -> float:
    """Range over the last window, over the mean."""
    values = log.series(signal, layer)[1][-WINDOW:]
    return float((values.max() - values.min()) / values.mean())


def main() -> str:
    """Table and verdict."""
    rows, ends = [], (0, DEPTH - 1)
    for kappa in KAPPAS:
        found = []
        for seed in (0, 1):
            log, loss = train(kappa, seed)
            up = [f"up.{i}" for i in range(DEPTH)]
            found.append([
                *(float(np.mean(log.series("skip_main_ratio", up[i])[1][-4:])) for i in ends),
                *(spread(log, "output_rms", up[i]) for i in ends),
                *(spread(log, "activation_gradient_rms", up[i]) for i in ends),
                loss,
            ])  # fmt: skip
        rows.append((f"kappa = {kappa:g}", *np.mean(found, axis=0).tolist()))
    parts = ("skip / main", "range of features", "range of gradients")
    head = ("", *(f"{part}, {where} block" for part in parts for where in ("first", "last")), "loss")
    plain, scaled = rows[0], rows[-1]
    calmer = [f"{what} {a:.2f} to {b:.2f}" for what, a, b in (
        ("features of the first block from", plain[3], scaled[3]), ("of the last from", plain[4], scaled[4]),
        ("gradients of the first from", plain[5], scaled[5]), ("of the last from", plain[6], scaled[6]),
    )]  # fmt: skip
    features, gradients = (all(scaled[i] < 0.8 * plain[i] for i in pair) for pair in ((3, 4), (5, 6)))
    return f"""{table(head, rows)}

**Verdict.** From kappa 1 to {KAPPAS[-1]:g} the ranges change thus: {"; ".join(calmer)}. So the claim {"reproduces" if features and gradients else "reproduces for the features only" if features else "reproduces for the gradients only" if gradients else "does not reproduce"} at
this size (a fifth less at both ends is asked for). `skip_main_ratio` shows what the coefficient does. What is normal depends on the network, so there
is no rule."""
