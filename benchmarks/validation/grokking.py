"""Softmax collapse on modular addition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.report import table

TITLE = "Softmax collapse (Grokking at the edge of numerical stability)"
CLAIM = """Prieto et al. 2025, arXiv:2501.04697 [abstract, code]: without regularisation the loss of more and more samples becomes exactly zero
in the softmax's precision (softmax collapse), learning stops before it generalises; more precision delays it, StableMax
prevents it. The gradient aligns with the direction that only scales the logits."""
SETUP = """Addition modulo 53, 40 % of the pairs for training, one-hot inputs to an MLP of width 200, full batches, AdamW without weight decay,
learning rate 1e-2 (5e-3 for StableMax); 1,500 epochs. Collapse: the share of training samples whose loss is exactly zero, as
`softmax_collapse_ratio` counts it, for a softmax in half, single and double precision."""
MODULUS, EPOCHS = 53, 1500


def log_softmax(z: Tensor) -> Tensor:
    """In the precision of its input."""
    return F.log_softmax(z, dim=-1)


def log_stablemax(z: Tensor) -> Tensor:
    """s(x) = x + 1 for x >= 0, 1 / (1 - x) below, over their sum."""
    s = torch.where(z >= 0, z + 1, 1 / (1 - z))
    return torch.log(s / s.sum(dim=-1, keepdim=True))


VARIANTS = {
    "softmax, float16": (torch.float16, log_softmax, 1e-2),
    "softmax, float32": (torch.float32, log_softmax, 1e-2),
    "softmax, float64": (torch.float64, log_softmax, 1e-2),
    "StableMax, float32": (torch.float32, log_stablemax, 5e-3),
}


def train(kind: torch.dtype, log_probabilities: object, rate: float) -> dict[str, float]:
    """First epoch with half of the samples collapsed, collapse at the end, test accuracy, and cos(-gradient, weights)."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    inputs = torch.cat([F.one_hot(pairs[:, i], MODULUS) for i in (0, 1)], dim=1).float()
    labels = pairs.sum(1) % MODULUS
    order = torch.randperm(len(pairs), generator=generator)
    cut = int(0.4 * len(order))
    train_rows, test_rows = order[:cut], order[cut:]
    model = nn.Sequential(nn.Linear(2 * MODULUS, 200), nn.ReLU(), nn.Linear(200, MODULUS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    half, share = 0, 0.0
    for epoch in range(EPOCHS):
        logp = log_probabilities(model(inputs[train_rows]).to(kind))  # type: ignore[operator]
        losses = -logp.gather(1, labels[train_rows, None])
        share = (losses == 0).float().mean().item()
        half = half or (epoch if share > 0.5 else 0)
        optimizer.zero_grad()
        losses.float().mean().backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(inputs[test_rows]).argmax(1) == labels[test_rows]).float().mean().item()
    flat = [
        torch.cat([x.flatten() for x in xs])
        for xs in zip(*((p.detach(), -p.grad) for p in model.parameters()), strict=True)
    ]
    return {"half": half, "share": share, "accuracy": accuracy, "cosine": F.cosine_similarity(*flat, dim=0).item()}


def main() -> str:
    """Tables and verdict."""
    runs = {name: train(*variant) for name, variant in VARIANTS.items()}
    rows = [(n, r["half"] or "never", r["share"], r["cosine"], r["accuracy"]) for n, r in runs.items()]
    head = (
        "",
        "epoch with half of the samples collapsed",
        "collapsed at the end",
        "cos(-gradient, weights)",
        "test accuracy",
    )
    order = [runs[n]["half"] or EPOCHS + 1 for n in VARIANTS]
    delayed = order[0] <= order[1] <= order[2]
    prevented = runs["StableMax, float32"]["share"] == 0
    return f"""{table(head, rows)}

**Verdict.** More precision delays the collapse: {"yes" if delayed and order[0] < order[2] else "no"}; StableMax prevents it: {"yes" if prevented else "no"}. Whether it also lets this network generalise
within {EPOCHS} epochs the last column says."""
