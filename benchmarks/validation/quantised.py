"""Oscillating weights in quantisation-aware training: do they show, and do they tell sick from healthy?"""

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
from stabwatch.runlog import Run, read_run

TITLE = "Oscillating weights in quantisation-aware training (Nagel et al., OFQ)"
CLAIM = """Nagel et al. 2022, arXiv:2203.11086 [abstract]: weights of quantisation-aware training oscillate between two levels, which hurts the accuracy
(by wrong statistics of batch normalisation and noise), the more so at few bits and in depthwise convolutions. OFQ, arXiv:2302.02210 [code]: the weights
that oscillate are sought within 0.005 of a level of the boundaries, so more of them should be there than if they were spread evenly."""
SETUP = """A network of two layers of 64 with learned step sizes (LSQ) on eight classes of noisy random prototypes in 32 dimensions, 600 steps on
batches of 64, momentum 0.9 at rate 0.05 or Adam at 0.003; measured by stabwatch at each step, mean over both layers: flips of a step,
oscillation at the end of the first sixth and of the run, boundary (1: evenly spread) at the end, accuracy on held-out data, and that after 150
more steps at a tenth of the rate. The same network without quantisation beside it. No batch normalisation, no depthwise convolutions."""
BITS, STEPS, WIDTH, CLASSES, INPUTS = (2, 3, 4, 8), 600, 64, 8, 32


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Lsq(nn.Module):
    """Learned step size quantisation (Esser et al. 2020)."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.quant_min, self.quant_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.scale = nn.Parameter(2 * weight.detach().abs().mean() / self.quant_max**0.5)
        self.factor = 1 / (weight.numel() * self.quant_max) ** 0.5

    def forward(self, weight: Tensor) -> Tensor:
        """Quantised weight."""
        scale = self.scale * self.factor + (self.scale * (1 - self.factor)).detach()
        x: Tensor = _Round.apply((weight / scale).clamp(self.quant_min, self.quant_max))
        return x * scale


class LsqLinear(nn.Linear):
    """A linear layer with a quantised weight."""

    def __init__(self, inputs: int, outputs: int, bits: int) -> None:
        super().__init__(inputs, outputs)
        self.weight_quantizer = Lsq(self.weight, bits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


def task(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    centres = torch.randn(CLASSES, 4, INPUTS, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    y, kind = (torch.randint(n, (count,), generator=draw) for n in (CLASSES, 4))
    return centres[y, kind] + 1.2 * torch.randn(count, INPUTS, generator=draw), y


def accuracy(model: nn.Module) -> float:
    """On held-out data."""
    x, y = task(4000, 2)
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """On new batches."""
    x, y = task(4000, 1)
    draw = torch.Generator().manual_seed(3)
    for _ in range(steps):
        chosen = torch.randint(len(x), (64,), generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()


def part(run: Run, signal: str, begin: int, end: int) -> float:
    """Mean of a signal over layers and steps."""
    found = []
    for layer in ("0", "2"):
        steps, values = run.series(signal, layer)
        found.append(values[(steps >= begin) & (steps < end)].mean())
    return float(np.mean(found))


def annealed(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Accuracy, and that after some steps at a tenth of the rate."""
    before = accuracy(model)
    for group in optimizer.param_groups:
        group["lr"] /= 10
    train(model, optimizer, STEPS // 4)
    return before, accuracy(model)


def one(bits: int | None, adam: bool) -> tuple[float, ...]:
    """Row of the table. bits: None without quantisation."""
    torch.manual_seed(0)
    sizes = ((INPUTS, WIDTH), (WIDTH, WIDTH))
    layers = [nn.Linear(*size) if bits is None else LsqLinear(*size, bits) for size in sizes]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    every = model.parameters()
    optimizer = torch.optim.Adam(every, lr=0.003) if adam else torch.optim.SGD(every, lr=0.05, momentum=0.9)
    if bits is None:
        train(model, optimizer, STEPS)
        return (*[np.nan] * 4, *annealed(model, optimizer))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with stabwatch.attach(model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True):
            train(model, optimizer, STEPS)
        log = read_run(path)
    early, late = (STEPS // 6 - 20, STEPS // 6), (STEPS - 50, STEPS)
    return (
        part(log, "quantised_flip_ratio", *late),
        part(log, "quantised_oscillation_ratio", *early),
        part(log, "quantised_oscillation_ratio", *late),
        part(log, "quantised_boundary_ratio", *late),
        *annealed(model, optimizer),
    )


def main() -> str:
    """Table and verdict."""
    rows, found = [], {}
    for adam in (False, True):
        for bits in (*BITS, None):
            found[adam, bits] = one(bits, adam)
            name = f"{'Adam' if adam else 'momentum'}, {'not quantised' if bits is None else f'{bits} bits'}"
            rows.append((name, *("" if np.isnan(x) else x for x in found[adam, bits])))
    head = ("", "flips", "oscillating, early", "oscillating, end", "boundary", "accuracy", "at a tenth of the rate")
    few, many = ([found[adam, bits] for adam in (False, True)] for bits in (BITS[0], BITS[-1]))
    fewer = all(f[2] > m[2] for f, m in zip(few, many, strict=True))
    gathered = [bits for bits in BITS if all(found[adam, bits][3] > 1.2 for adam in (False, True))]
    gap = max(found[adam, None][5] - found[adam, bits][5] for adam in (False, True) for bits in BITS)
    healthy = min(m[2] for m in many)
    return f"""{table(head, rows)}

**Verdict.** Weights do oscillate: up to {max(found[a, b][2] for a in (False, True) for b in BITS):.2f} of them at the end. That it is worse at few bits {"reproduces" if fewer else "does not reproduce"}: {few[0][2]:.2f} and {few[1][2]:.2f} (momentum, Adam) with
{BITS[0]} bits, {many[0][2]:.2f} and {many[1][2]:.2f} with {BITS[-1]}, whose levels are so fine that steps cross them.
Weights gather at boundaries with {", ".join(map(str, gathered)) or "no number of"} bits ({few[0][3]:.2f} and {few[1][3]:.2f} with {BITS[0]}).
No quantised network ends more than {gap:.3f} below the one without quantisation. So {healthy:.2f} of the weights oscillate where training is well, no threshold tells
sick from healthy here, and there is no rule: the signals are evidence. What depthwise convolutions and batch normalisation suffer is not tried."""
