"""Plain torch: all random halves at once; ranks by sorting, ties get their mean rank. Nothing waits for the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CONSTANT = 1e-6
"""Spread of cosines in float32 below which all distances count as equal. Such a half is left out."""
EXACTLY_CONSTANT = 1e-13
"""The same in float64. Rounding of float32 points of one direction gives at most a tenth of it."""


def stability(x: Tensor, partitions: int, generator: torch.Generator) -> Tensor:
    """float32 (3,): halves compared, sum and sum of squares of their rank correlations.

    x (n, D), n >= 3, D >= 4: points and their features. generator: a CPU generator of the caller. A point of
    length zero has no direction and is left out. With a non-finite point, no half is compared.
    """
    scores, used = split_scores(x, _permutations(partitions, x.shape[1], generator, x.device))
    kept = torch.where(used, scores, 0.0)
    return torch.stack((used.sum(dtype=torch.float32), kept.sum(), kept.square().sum()))


def split_scores(x: Tensor, permutations: Tensor) -> tuple[Tensor, Tensor]:
    """Rank correlation (P,) for each permutation (P, D) of the features, and whether both halves distinguish points."""
    unit = F.normalize(x.detach().float(), dim=1, eps=1e-30)
    half = x.shape[1] // 2
    parts = unit.T[permutations[:, : 2 * half]].unflatten(1, (2, half)).mT  # (P, 2, n, half)
    return _rank_correlation(parts[:, 0], parts[:, 1])


def drift(x: Tensor, reference: Tensor) -> Tensor:
    """1 - rank correlation between the cosine distances in x (n, D) and in reference (n, E): a number in 0..2.

    NaN if either does not distinguish points. In float64, because cosines of nearly collapsed points round to 1.
    """
    score, used = _rank_correlation(x.detach().double(), reference.detach().double())
    return torch.where(used, 1 - score, torch.nan).float()


def shift_coherence(x: Tensor, reference: Tensor) -> Tensor:
    """Mean cosine of each point's shift to the mean shift, from reference (n, D) to x (n, D)."""
    shift = x.detach().float() - reference.detach().float()
    return F.cosine_similarity(shift, shift.mean(dim=0, keepdim=True), dim=1, eps=1e-30).mean()


def centred_cosine(x: Tensor, before: Tensor) -> Tensor:
    """Cosine of x (n, D) and before (n, D) as vectors, each feature less its mean over the points.

    NaN where the points of either are all the same.
    """
    a, b = (y.detach().double() for y in (x, before))
    a, b = (y - y.mean(dim=0, keepdim=True) for y in (a, b))
    return ((a * b).sum() / (a.norm() * b.norm())).float()


def rank_among(value: Tensor, values: Tensor) -> Tensor:
    """The share of the numbers in values (n,) below the value, equal ones half. NaN is no number, and has no rank."""
    lower = (values < value).sum() + 0.5 * (values == value).sum()
    return torch.where(value.isnan(), torch.nan, lower / (~values.isnan()).sum()).float()


def _permutations(count: int, length: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Permutations (count, length), drawn on the device: a copy from pageable memory may wait for it."""
    seed = int(torch.randint(2**62, (), generator=generator))
    local = torch.Generator(device).manual_seed(seed)
    return torch.rand(count, length, generator=local, device=device).argsort(dim=1)


def _rank_correlation(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Spearman's correlation (...) of the cosines of pairs in a (..., n, d) and b (..., n, e), and whether both spread.

    The order of the distances is the reverse of that of the cosines.
    """
    known = (a != 0).any(dim=-1) & (b != 0).any(dim=-1)  # (..., n); NaN stays, also in the result
    rows, columns = torch.triu_indices(a.shape[-2], a.shape[-2], 1, device=a.device)
    pairs = known[..., rows] & known[..., columns]
    first, second = (_cosines(y)[..., rows, columns] for y in (a, b))
    least = (EXACTLY_CONSTANT if first.dtype == torch.float64 else CONSTANT) * pairs.sum(dim=-1).sqrt()
    used = (_centred(first, pairs).norm(dim=-1) > least) & (_centred(second, pairs).norm(dim=-1) > least)
    places = [_centred(_ranks(c.masked_fill(~pairs, torch.inf)), pairs) for c in (first, second)]
    return F.cosine_similarity(places[0], places[1], dim=-1, eps=0.0), used


def _cosines(points: Tensor) -> Tensor:
    """Cosines between points: (..., n, d) -> (..., n, n)."""
    unit = F.normalize(points, dim=-1, eps=1e-30)
    return unit @ unit.mT


def _centred(x: Tensor, kept: Tensor) -> Tensor:
    """x minus the mean of the kept elements; zero elsewhere."""
    mean = x.where(kept, 0.0).sum(dim=-1, keepdim=True) / kept.sum(dim=-1, keepdim=True).clamp(min=1)
    return (x - mean).where(kept, 0.0)


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
