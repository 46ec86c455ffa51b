"""Plain torch: all random halves at once; ranks by sorting, ties by their mean rank. Nothing waits for the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CONSTANT = 1e-6
"""Spread of cosines under which all distances are the same, in float32: such a half says nothing and is left out."""


def stability(x: Tensor, partitions: int, generator: torch.Generator) -> Tensor:
    """float32 (3,): halves compared, sum and sum of squares of their rank correlations.

    x (n, D), n >= 3, D >= 4: points and their features. The generator is a CPU one and the caller's own.
    """
    permutations = torch.stack([torch.randperm(x.shape[1], generator=generator) for _ in range(partitions)])
    scores, used = split_scores(x, permutations.to(x.device, non_blocking=True))
    kept = torch.where(used, scores, 0.0)
    return torch.stack((used.sum(dtype=torch.float32), kept.sum(), kept.square().sum()))


def split_scores(x: Tensor, permutations: Tensor) -> tuple[Tensor, Tensor]:
    """Rank correlation (P,) for each permutation (P, D) of the features, and whether both halves tell points apart."""
    unit = F.normalize(x.detach().float(), dim=1, eps=1e-30)
    half = x.shape[1] // 2
    parts = unit.T[permutations[:, : 2 * half]].unflatten(1, (2, half)).mT  # (P, 2, n, half)
    cosines = _condensed(parts)
    used = (cosines.std(dim=-1) > CONSTANT).all(dim=1)
    ranks = _ranks(cosines)
    return _correlation(ranks[:, 0], ranks[:, 1]), used


def drift(x: Tensor, reference: Tensor) -> Tensor:
    """1 - rank correlation between the cosine distances in x (n, D) and in reference (n, E): a number in 0..2."""
    ranks = [_ranks(_condensed(y.detach().float()[None, None]))[0, 0] for y in (x, reference)]
    return 1 - _correlation(*ranks)


def shift_coherence(x: Tensor, reference: Tensor) -> Tensor:
    """Mean cosine of each point's shift to the mean shift, from reference (n, D) to x (n, D)."""
    shift = x.detach().float() - reference.detach().float()
    return F.cosine_similarity(shift, shift.mean(dim=0, keepdim=True), dim=1, eps=1e-30).mean()


def _condensed(points: Tensor) -> Tensor:
    """(P, 2, n, d) to the cosines of all pairs: (P, 2, n (n - 1) / 2). Distances order the same, upside down."""
    unit = F.normalize(points, dim=-1, eps=1e-30)
    rows, columns = torch.triu_indices(points.shape[-2], points.shape[-2], 1, device=points.device)
    return (unit @ unit.mT)[..., rows, columns]


def _ranks(x: Tensor) -> Tensor:
    """Mean ranks along the last dimension, from 0."""
    ordered, places = x.sort(dim=-1)
    n = x.shape[-1]
    at = torch.arange(n, device=x.device).expand_as(places)
    starts = F.pad(ordered[..., 1:] != ordered[..., :-1], (1, 0), value=True)  # of runs of equal numbers
    first = torch.where(starts, at, 0).cummax(dim=-1).values
    ends = F.pad(starts[..., 1:], (0, 1), value=True)
    last = torch.where(ends, at, n - 1).flip(-1).cummin(dim=-1).values.flip(-1)
    return torch.empty_like(x).scatter_(-1, places, (first + last).to(x.dtype) / 2)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (y - y.mean(dim=-1, keepdim=True) for y in (a, b))
    return F.cosine_similarity(a, b, dim=-1, eps=0.0)
