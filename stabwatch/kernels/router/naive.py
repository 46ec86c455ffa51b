"""The definition, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def router(logits: Tensor, top_k: int, wanted: Tensor | None = None) -> Tensor:
    """logits (N, E) -> float64 (4,): tokens, entropies, squared logsumexps, largest load / mean load - 1.

    wanted (N, E): the scores that select the experts, if not the logits.
    """
    wanted = logits if wanted is None else wanted
    logits = logits.detach().double()
    p = torch.softmax(logits, dim=-1)
    entropy = -(p * p.log()).nan_to_num().sum()
    load = torch.bincount(wanted.topk(top_k, dim=-1).indices.flatten(), minlength=logits.shape[1]).double()
    violation = load.max() / load.mean() - 1
    square = torch.logsumexp(logits, dim=-1).square().sum()
    return torch.stack((torch.tensor(float(len(logits))).double(), entropy, square, violation))


def choice(logits: Tensor, weight: Tensor, top_k: int, wanted: Tensor | None = None) -> list[float]:
    """See `eager.choice`; token by token and pair by pair."""
    logits, weight = logits.detach().double(), weight.detach().double()
    scores = logits if wanted is None else wanted.double()
    margins = 0.0
    for row in scores.tolist():
        best = sorted(row, reverse=True)
        margins += best[top_k - 1] - best[top_k] if top_k < len(best) else 0.0
    load = torch.tensor(loads(scores, top_k)).double()
    gap = (load / load.sum() - torch.softmax(logits, dim=-1).mean(dim=0)).abs().sum().item() / 2
    pairs = [
        torch.nn.functional.cosine_similarity(a, b, dim=0).item()
        for i, a in enumerate(weight)
        for j, b in enumerate(weight)
        if i != j
    ]
    squares = torch.linalg.svdvals(weight - weight.mean(dim=0)).square()
    wide = (squares.sum() ** 2 / squares.square().sum()).item() / (len(weight) - 1)
    n = float(len(logits))
    return [float(logits.numel()), logits.square().sum().item(), n, margins, 1.0, gap, sum(pairs) / len(pairs), wide]


def loads(logits: Tensor, top_k: int) -> list[int]:
    """logits (N, E): number of tokens with each expert among their `top_k`, token by token."""
    counts = [0] * logits.shape[1]
    for row in logits.detach().double().tolist():
        for expert in sorted(range(len(row)), key=lambda e: -row[e])[:top_k]:
            counts[expert] += 1
    return counts


def grouped(scores: Tensor, groups: int, kept: int) -> Tensor:
    """scores (N, E) with -inf outside the `kept` groups of the largest sums of their two best scores, row by row."""
    out, size = torch.full_like(scores, -torch.inf), scores.shape[1] // groups
    for row, into in zip(scores, out, strict=True):
        parts = [range(g * size, (g + 1) * size) for g in range(groups)]
        worth = [sum(sorted((float(row[e]) for e in part), reverse=True)[:2]) for part in parts]
        for g in sorted(range(groups), key=lambda g: -worth[g])[:kept]:
            into[list(parts[g])] = row[list(parts[g])]
    return out


def beyond(loads: list[int], capacity: float) -> list[float]:
    """Assignments, and those that experts with a capacity of `capacity` times the mean load drop."""
    room = capacity * sum(loads) / len(loads)
    return [float(sum(loads)), sum(load - room for load in loads if load > room)]


def expert_moments(outputs: Tensor, experts: Tensor, kept: Tensor, count: int) -> Tensor:
    """float64 (count, 2): elements of each expert, and the sum of their squares."""
    out = torch.zeros(count, 2, dtype=torch.float64)
    for x, expert, keep in zip(outputs.double(), experts.tolist(), kept.tolist(), strict=True):
        finite = x[torch.isfinite(x)]
        if keep:
            out[expert] += torch.tensor([float(len(finite)), float(finite.square().sum())])
    return out
