"""Momentum on scale-invariant weights: does the effective step size decay, and does projecting cure it?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.report import table
from stabwatch.kernels.direction import direction

TITLE = "Effective step size on scale-invariant weights (AdamP)"
CLAIM = """Heo et al. 2020, arXiv:2006.08217 [abstract]: momentum makes the norm of scale-invariant weights grow faster, so that the effective
step size decays early; taking the radial part out of the update cures it."""
SETUP = """A linear layer followed by batch normalisation (scale-invariant) and a classifier, synthetic table, learning rate 0.1, 400 steps;
effective step: |update| / |weight| of that layer; radial share: cosine of update and weight as stabwatch measures it."""
STEPS = 400


def train(momentum: float, projected: bool) -> dict[str, float]:
    """Norm growth, effective step early and late, mean radial cosine."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64, bias=False), nn.BatchNorm1d(64, affine=False), nn.ReLU(), nn.Linear(64, 5))
    weight: Tensor = model[0].weight
    x = torch.randn(2048, 20)
    y = x[:, :5].argmax(1)
    velocity = {p: torch.zeros_like(p) for p in model.parameters()}
    first, steps, cosines = weight.norm().item(), [], []
    for _ in range(STEPS):
        rows = torch.randint(2048, (64,))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        model.zero_grad()
        loss.backward()
        before = weight.detach().clone()
        with torch.no_grad():
            for p, v in velocity.items():
                v.mul_(momentum).add_(p.grad)
                update = -0.1 * v
                if projected and p is weight:  # row by row: each unit is scale-invariant by itself
                    unit = p / p.norm(dim=1, keepdim=True)
                    update -= (update * unit).sum(1, keepdim=True) * unit
                p.add_(update)
        _, dot, uu, ww = direction(weight.detach() - before, before).tolist()
        steps.append((uu / ww) ** 0.5)
        cosines.append(dot / (uu * ww) ** 0.5)
    early, late = sum(steps[10:50]) / 40, sum(steps[-40:]) / 40
    return {"growth": weight.norm().item() / first, "early": early, "late": late, "radial": sum(cosines) / STEPS}


def main() -> str:
    """Tables and verdict."""
    runs = {
        "SGD": train(0.0, False),
        "momentum 0.9": train(0.9, False),
        "momentum 0.9, projected": train(0.9, True),
    }
    rows = [(name, r["growth"], r["early"], r["late"], r["early"] / r["late"], r["radial"]) for name, r in runs.items()]
    plain, cured = runs["momentum 0.9"], runs["momentum 0.9, projected"]
    holds = plain["growth"] > cured["growth"] and plain["early"] / plain["late"] > cured["early"] / cured["late"]
    sgd = runs["SGD"]
    return f"""{table(("", "norm grew by", "effective step, early", "late", "early / late", "mean radial cosine"), rows)}

**Verdict.** Momentum grows the norm by {plain["growth"]:.2f} where plain SGD does by {sgd["growth"]:.2f}; the projection leaves {cured["growth"]:.2f}. The effective step decays
{plain["early"] / plain["late"]:.1f}-fold with momentum and {cured["early"] / cured["late"]:.1f}-fold projected: the claim {"reproduces" if holds else "does not reproduce here"}."""
