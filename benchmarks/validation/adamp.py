"""Momentum on scale-invariant weights: does the effective step size decay, and does projecting cure it?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.report import table
from stabwatch.kernels.direction import direction, invariance, radial

TITLE = "Effective step size on scale-invariant weights (AdamP)"
CLAIM = """Heo et al. 2020, arXiv:2006.08217 [abstract]: momentum makes the norm of scale-invariant weights grow faster, so that the effective
step size decays early; taking the radial part out of the update cures it. As the gradient is tangential, the squared norm grows by
1 + 2 beta / (1 - beta) times the sum of squared steps [derived]: 19 times with momentum 0.9, once without or projected."""
SETUP = """A linear layer followed by batch normalisation (scale-invariant) and a classifier, synthetic table, learning rate 0.1, 400 steps;
plain SGD also at 1.0, which momentum 0.9 amounts to on a steady gradient. Effective step (root mean square angle of the rows of that
layer), radial share of its update, and the share of steps at which it and the classifier are found scale-invariant: as stabwatch measures
them, and the mean cosine of update and weight."""
STEPS = 400


def train(momentum: float, projected: bool, rate: float = 0.1) -> dict[str, float]:
    """Norm growth, also per squared step, effective step early and late, mean radial cosine and share, what is found."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64, bias=False), nn.BatchNorm1d(64, affine=False), nn.ReLU(), nn.Linear(64, 5))
    weight: Tensor = model[0].weight
    x = torch.randn(2048, 20)
    y = x[:, :5].argmax(1)
    velocity = {p: torch.zeros_like(p) for p in model.parameters()}
    first, path = weight.norm().item(), 0.0
    steps, cosines, shares, found = [], [], [], []
    for _ in range(STEPS):
        rows = torch.randint(2048, (64,))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        model.zero_grad()
        loss.backward()
        before = weight.detach().clone()
        invariant = invariance(before, weight.grad)
        found.append((invariant.any().item(), invariance(model[3].weight, model[3].weight.grad).any().item()))
        with torch.no_grad():
            for p, v in velocity.items():
                v.mul_(momentum).add_(p.grad)
                update = -rate * v
                if projected and p is weight:  # row by row: each unit is scale-invariant by itself
                    unit = p / p.norm(dim=1, keepdim=True)
                    update -= (update * unit).sum(1, keepdim=True) * unit
                p.add_(update)
        change = weight.detach() - before
        _, dot, uu, ww = direction(change, before).tolist()
        vectors, size, along, angles = radial(change, before, invariant).tolist()
        steps.append((angles / vectors) ** 0.5 if vectors else float("nan"))
        shares.append(along / size if vectors else float("nan"))
        cosines.append(dot / (uu * ww) ** 0.5)
        path += uu
    early, late = nanmean(steps[10:50]), nanmean(steps[-40:])
    last = weight.norm().item()
    return {
        "growth": last / first,
        "factor": (last**2 - first**2) / path,
        "early": early,
        "late": late,
        "radial": sum(cosines) / STEPS,
        "share": nanmean(shares),
        "found": sum(ours for ours, _ in found) / STEPS,
        "head": sum(head for _, head in found) / STEPS,
    }


def nanmean(values: list[float]) -> float:
    """Over what was measured."""
    return torch.tensor(values).nanmean().item()


def main() -> str:
    """Tables and verdict."""
    runs = {
        "SGD": train(0.0, False),
        "SGD, rate 1.0": train(0.0, False, 1.0),
        "momentum 0.9": train(0.9, False),
        "momentum 0.9, projected": train(0.9, True),
    }
    rows = [
        (
            *(name, r["growth"], r["factor"], r["early"], r["late"], r["early"] / r["late"], r["radial"], r["share"]),
            *(r["found"], r["head"]),
        )
        for name, r in runs.items()
    ]
    head = (
        *("", "norm grew by", "squared norm per squared step"),
        *("effective step, early", "late", "early / late", "mean radial cosine", "radial share"),
        *("found scale-invariant", "classifier found so"),
    )
    _, fair, plain, cured = runs.values()
    exact = abs(plain["factor"] / 19 - 1) < 0.05 and abs(cured["factor"] - 1) < 0.05
    holds = (
        exact and plain["growth"] > cured["growth"] and plain["early"] / plain["late"] > cured["early"] / cured["late"]
    )
    return f"""{table(head, rows)}

**Verdict.** The claim {"reproduces" if holds else "does not reproduce here"}: the squared norm grows {plain["factor"]:.1f} times the squared steps with momentum (derived 19),
{fair["factor"]:.2f} times without and {cured["factor"]:.2f} projected; the effective step decays {plain["early"] / plain["late"]:.1f}-fold with momentum and {cured["early"] / cured["late"]:.1f}-fold projected. Not by
momentum alone, though: plain SGD at 1.0 grows the norm by {fair["growth"]:.2f} where momentum does by {plain["growth"]:.2f}, with steps {fair["early"] / plain["early"]:.1f} times as long.
The layer is found scale-invariant in {min(r["found"] for r in runs.values()):.1%} of the steps or more, the classifier, which is not, in {max(r["head"] for r in runs.values()):.1%} or fewer."""
