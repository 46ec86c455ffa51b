"""Singular values under AdamW: how they depend on learning rate, weight decay and width."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from benchmarks.report import table
from stabwatch.kernels.power_iteration import iterate, start

TITLE = "Top singular values under AdamW (robust layerwise scaling)"
CLAIM = """[abstract]: at stationarity sigma_1 is proportional to sqrt(eta / lambda) d^0.75, and the shape of the spectrum does not change, so
that weight decay proportional to sqrt(d) at eta proportional to 1 / d keeps the gain of a layer between widths. (The exponents of
the square roots are garbled in the text we have; this is the reading that is consistent.)"""
SETUP = """A two-layer MLP learns a fixed random teacher with noisy labels, AdamW, batches of 64, 2,000 steps; the hidden matrix (d x d); sigma_1 by
the power iteration of stabwatch, checked against the decomposition. Exponents by least squares in the logarithms."""
WIDTHS, RATES, DECAYS, STEPS = (32, 64, 128), (3e-3, 1e-2, 3e-2), (0.1, 0.3, 1.0), 2000


def train(width: int, rate: float, decay: float, steps: int = STEPS) -> tuple[float, float, float]:
    """sigma_1 by power iteration, its relative error, and the stable rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
    teacher = torch.randn(16, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    for _ in range(steps):
        x = torch.randn(64, 16)
        loss = (model(x) - torch.tanh(x @ teacher) - 0.5 * torch.randn(64, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight = model[2].weight.detach()
    basis = start(weight, 4)
    for _ in range(20):
        values, basis, _ = iterate(weight, basis)
    truth = torch.linalg.svdvals(weight.double())
    return values[0].item(), abs(values[0].item() / truth[0].item() - 1), float(truth.square().sum() / truth[0] ** 2)


def main() -> str:
    """Tables and verdict."""
    found = {(d, r, w): train(d, r, w) for d in WIDTHS for r in RATES for w in DECAYS}
    rows = [
        (f"d = {d}, eta = {r:g}", *(found[d, r, w][0] for w in DECAYS), *(found[d, r, w][2] for w in DECAYS))
        for d in WIDTHS
        for r in RATES
    ]
    head = ("", *(f"sigma_1, lambda = {w:g}" for w in DECAYS), *(f"stable rank, lambda = {w:g}" for w in DECAYS))
    settled = [k for k in found if k[1] * k[2] * STEPS > 5]  # five time constants of the decay
    x = np.array([[math.log(r), math.log(w), math.log(d), 1.0] for d, r, w in settled])
    y = np.array([math.log(found[k][0]) for k in settled])
    (eta, decay, width, _), residual, *_ = np.linalg.lstsq(x, y, rcond=None)
    matched = [train(d, 1e-2 * 32 / d, 1.0 * math.sqrt(d / 32))[0] for d in WIDTHS]
    plain = [train(d, 1e-2 * 32 / d, 1.0)[0] for d in WIDTHS]
    gain = table(
        ("sigma_1 at eta = 1e-2 * 32 / d", *(f"d = {d}" for d in WIDTHS), "largest over least"),
        (
            ("lambda = 1", *plain, max(plain) / min(plain)),
            ("lambda = sqrt(d / 32)", *matched, max(matched) / min(matched)),
        ),
    )
    error = max(v[1] for v in found.values())
    return f"""{table(head, rows)}

{gain}

**Verdict.** Over the {len(settled)} settled runs sigma_1 goes as eta^{eta:.2f} lambda^{decay:.2f} d^{width:.2f} (claimed 0.5, -0.5, 0.75), with a spread of
{math.sqrt(float(residual[0]) / len(settled)) if len(residual) else float("nan"):.2f} in the logarithm. Between widths sigma_1 varies by a factor of {max(matched) / min(matched):.2f} under the rule and {max(plain) / min(plain):.2f} without. The power
iteration is off by {error:.1e} at most."""
