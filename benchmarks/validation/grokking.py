"""Softmax collapse on modular addition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.report import table
from stabwatch.hooks.probes.loss import scaling

TITLE = "Softmax collapse (Grokking at the edge of numerical stability)"
CLAIM = """Prieto et al. 2025, arXiv:2501.04697 [abstract, code]: without regularisation the loss of more and more samples becomes exactly zero
in the softmax's precision (softmax collapse), learning stops before it generalises; more precision delays it, StableMax
prevents it. The gradient aligns with the direction that only scales the logits; without that part of it (OrthoGrad) the network generalises."""
SETUP = """Addition modulo 31, 40 % of the pairs for training, one-hot inputs to an MLP of two hidden layers of 200, full batches, Adam without weight
decay at a learning rate of 1e-2 (epsilon 1e-30, as in the authors' runs), for 2,000 epochs; weights in float32, the softmax in the precision
named. logit_scaling_cosine: mean of the last hundred epochs. Collapse: the share of training samples whose loss is exactly zero, as `softmax_collapse_ratio` counts it."""
MODULUS, EPOCHS, WIDTH = 31, 2000, 200


def log_stablemax(z: Tensor) -> Tensor:
    """s(x) = x + 1 for x >= 0, 1 / (1 - x) below, over their sum."""
    s = torch.where(z >= 0, z + 1, 1 / (1 - z.clamp(max=0)))
    return torch.log(s / s.sum(dim=-1, keepdim=True))


def log_softmax(z: Tensor) -> Tensor:
    """In the precision of its input."""
    return F.log_softmax(z, dim=-1)


@dataclass(frozen=True)
class Variant:
    """How the loss is computed, and whether the gradient's part along the weights is taken out."""

    precision: torch.dtype
    log_probabilities: Callable[[Tensor], Tensor] = log_softmax
    orthogonal: bool = False


@dataclass(frozen=True)
class Outcome:
    """Epoch at which half of the samples had collapsed (None: never), share at the end, cosines, accuracies.

    cosine: of -gradient and weights. scaling: the mean of logit_scaling_cosine over the last hundred epochs, where the
    loss is cross-entropy.
    """

    half: int | None
    share: float
    cosine: float
    scaling: float
    train: float
    test: float


VARIANTS = {
    "softmax, float16": Variant(torch.float16),
    "softmax, float32": Variant(torch.float32),
    "softmax, float64": Variant(torch.float64),
    "StableMax, float32": Variant(torch.float32, log_stablemax),
    "softmax, float32, OrthoGrad": Variant(torch.float32, orthogonal=True),
}


def without_radial(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient without its part along the parameter, as long as before."""
    rest = gradient - (parameter * gradient).sum() / (parameter.square().sum() + 1e-30) * parameter
    return rest * gradient.norm() / (rest.norm() + 1e-30)


def problem(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, labels, and the rows for training and for the test."""
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    inputs = F.one_hot(pairs, MODULUS).flatten(1).float()
    order = torch.randperm(len(pairs), generator=generator)
    cut = int(0.4 * len(order))
    return inputs, pairs.sum(1) % MODULUS, order[:cut], order[cut:]


def network() -> nn.Module:
    """From a fixed seed that is nobody else's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(2 * MODULUS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, MODULUS)
        )


def train(variant: Variant) -> Outcome:
    """Train one variant."""
    inputs, labels, seen, unseen = problem(torch.Generator().manual_seed(0))
    model = network()
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-2, betas=(0.9, 0.99), eps=1e-30)
    half, share, cosine, scalings = None, 0.0, 0.0, []
    for epoch in range(EPOCHS):
        logits = model(inputs[seen])
        if epoch >= EPOCHS - 100 and variant.log_probabilities is log_softmax:
            rows, cosines = scaling(logits.detach(), labels[seen]).tolist()
            scalings.append(cosines / rows)
        logp = variant.log_probabilities(logits.to(variant.precision))
        losses = -logp.gather(1, labels[seen, None])
        share = (losses == 0).float().mean().item()
        if half is None and share > 0.5:
            half = epoch
        optimizer.zero_grad()
        losses.float().mean().backward()
        flat = [torch.cat([x.flatten() for x in xs]) for xs in (parameters, [-p.grad for p in parameters])]
        cosine = F.cosine_similarity(flat[0].double(), flat[1].double(), dim=0, eps=0).item()
        if variant.orthogonal:
            for p in parameters:
                p.grad = without_radial(p.detach(), p.grad)
        optimizer.step()
    with torch.no_grad():
        right = (model(inputs).argmax(1) == labels).float()
    return Outcome(
        half,
        share,
        cosine,
        torch.tensor(scalings).nanmean().item(),
        right[seen].mean().item(),
        right[unseen].mean().item(),
    )


def main() -> str:
    """Table and verdict."""
    runs = {name: train(variant) for name, variant in VARIANTS.items()}
    head = ("", "epoch with half of the samples collapsed", "collapsed at the end", "cos(-gradient, weights)", "logit_scaling_cosine", "training accuracy", "test accuracy")  # fmt: skip
    rows = [
        (n, "never" if r.half is None else r.half, r.share, r.cosine, r.scaling, r.train, r.test)
        for n, r in runs.items()
    ]
    half, single, double, stable, orthogonal = runs.values()
    reached = [EPOCHS if r.half is None else r.half for r in (half, single, double)]
    also = (
        "neither has float64 collapsed, so a run of this length cannot tell prevention from delay"
        if double.half is None
        else "float64 has collapsed too"
    )
    return f"""{table(head, rows)}

**Verdict.** More precision delays the collapse: {yes(reached[0] < reached[1] < reached[2], single.half is not None)}. StableMax prevents it: {yes(stable.half is None, single.half is not None)}; {also}.
The gradient points along the weights (cosine {double.cosine:.2f} in float64; `descent_weight_cosine` is this number). Row by row the descent
of the logits is not along the logits ({double.scaling:.2f}): it lifts the label over the class that comes next. OrthoGrad takes
the test accuracy from {single.test:.2f} to {orthogonal.test:.2f} (chance {1 / MODULUS:.2f}); StableMax reaches {stable.test:.2f} in these {EPOCHS:,} epochs, where the authors give it 80,000."""


def yes(holds: bool, tested: bool) -> str:
    """What a comparison says, if the run that it compares with did what it should."""
    return ("yes" if holds else "no") if tested else "not tested, as plain float32 did not do what it should"
