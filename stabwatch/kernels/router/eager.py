"""Plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def router(logits: Tensor, top_k: int, wanted: Tensor | None = None) -> Tensor:
    """logits (N, E) -> float32 (4,): tokens, entropies, squared logsumexps, largest load / mean load - 1.

    wanted (N, E): the scores that select the experts, if not the logits.
    """
    logits = logits.detach().float()
    lse = torch.logsumexp(logits, dim=-1)
    p = torch.softmax(logits, dim=-1)
    load = loads(logits if wanted is None else wanted, top_k)
    tokens = torch.full_like(lse[0], float(len(logits)))
    return torch.stack((tokens, torch.special.entr(p).sum(), lse.square().sum(), load.amax() / load.mean() - 1))


def choice(logits: Tensor, weight: Tensor, top_k: int, wanted: Tensor | None = None) -> Tensor:
    """logits (N, E), weight (E, C) of the router -> float32 (8,).

    Logits, their squares; tokens, the distances of the last chosen expert's score from the best that is not chosen;
    1, half the summed distance of the experts' shares of the softmax from their shares of the tokens, the mean cosine
    of the weight's rows, and the participation ratio of the squared singular values of these rows less their mean, over
    E - 1. wanted (N, E): the scores that select the experts, if not the logits.
    """
    logits, weight = logits.detach().float(), weight.detach().float()
    scores = logits if wanted is None else wanted.float()
    count = torch.full_like(logits[0, 0], float(logits.numel()))
    tokens = torch.full_like(count, float(len(logits)))
    best = scores.topk(min(top_k + 1, scores.shape[-1]), dim=-1).values
    margin = best[:, top_k - 1] - best[:, -1]
    margins = torch.where(torch.isfinite(margin), margin, 0.0).sum()
    load, mass = loads(scores, top_k), torch.softmax(logits, dim=-1).sum(dim=0)
    gap = (load / load.sum() - mass / mass.sum()).abs().sum() / 2
    rows = torch.nn.functional.normalize(weight, dim=-1)
    others = float(max(1, len(rows) * (len(rows) - 1)))
    alike = (rows.sum(dim=0).square().sum() - rows.square().sum()) / others
    centred = weight - weight.mean(dim=0)
    trace = centred.square().sum()
    square = (centred @ centred.T).square().sum()
    wide = torch.where(square > 0, trace.square() / square, 0.0) / max(1, len(weight) - 1)
    return torch.stack((count, logits.square().sum(), tokens, margins, torch.ones_like(count), gap, alike, wide))


def combined(parts: Tensor) -> Tensor:
    """parts (k, N, D): what each expert of a token adds -> float32 (3,).

    Elements of their sum, its squares, and the summed squares of the parts.
    """
    x = torch.nan_to_num(parts.detach().float(), nan=0.0, posinf=0.0, neginf=0.0)
    whole = x.sum(dim=0)
    return torch.stack((torch.full_like(whole[0, 0], float(whole.numel())), whole.square().sum(), x.square().sum()))


def loads(logits: Tensor, top_k: int) -> Tensor:
    """logits (N, E) -> float32 (E,): number of tokens with each expert among their `top_k`."""
    chosen = logits.detach().topk(top_k, dim=-1).indices.flatten()
    ones = torch.ones(chosen.shape, device=logits.device)
    return torch.zeros(logits.shape[-1], device=logits.device).scatter_add_(0, chosen, ones)


def grouped(scores: Tensor, groups: int, kept: int) -> Tensor:
    """scores (N, E) with -inf outside the `kept` groups of the largest sums of their two best scores."""
    if kept >= groups:
        return scores
    parts = scores.unflatten(-1, (groups, -1))
    worth = parts.topk(min(2, parts.shape[-1]), dim=-1).values.sum(dim=-1)
    best = torch.zeros_like(worth, dtype=torch.bool).scatter_(-1, worth.topk(kept, dim=-1).indices, True)
    return parts.masked_fill(~best[..., None], -torch.inf).flatten(-2)


def beyond(loads: Tensor, capacity: float) -> Tensor:
    """loads (E,) -> float32 (2,): assignments, and those beyond `capacity` times the mean load of an expert."""
    return torch.stack((loads.sum(), (loads - capacity * loads.mean()).clamp(min=0).sum()))


def expert_moments(outputs: Tensor, experts: Tensor, kept: Tensor, count: int) -> Tensor:
    """outputs (N, D), experts (N,) indices, kept (N,) bool -> float32 (count, 2): elements, sum of squares.

    Non-finite elements are left out.
    """
    x = outputs.detach().float()
    finite = torch.isfinite(x) & kept[:, None]
    squares = torch.where(finite, x, 0.0).square().sum(dim=1)
    rows = torch.stack((finite.sum(dim=1).float(), squares), dim=1)
    return torch.zeros(count, 2, device=x.device).index_add_(0, experts, rows)
