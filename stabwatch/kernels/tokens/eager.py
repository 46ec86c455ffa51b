"""Plain torch, without the matrix of pairs: the cosines follow from the squared length of the sum of unit vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.column_moments import column_sums

MOST = 256
"""Most tokens of a sample that are compared, evenly spaced."""


def tokens(x: Tensor, groups: Tensor | None = None) -> Tensor:
    """x (B, T, D), T >= 2 -> float32 (4,): samples, sum of their mean off-diagonal cosines, |mean|^2, |centred|^2.

    groups: bool (K, B, T), disjoint. Each group of two or more tokens is one sample. Tokens in no group are left
    out.
    """
    stride = -(-x.shape[1] // MOST)
    x = x.detach()[:, ::stride].float()
    if groups is not None:
        return _grouped(x, groups[..., ::stride].movedim(0, 1).float())
    n = x.shape[1]
    unit = torch.nn.functional.normalize(x, dim=-1, eps=1e-30)
    cosines = (column_sums(unit).square().sum(dim=-1) - unit.square().sum(dim=(1, 2))) / (n * (n - 1))
    mean = column_sums(x)[:, None] / n
    samples = torch.full((), float(len(x)), device=x.device)
    return torch.stack((samples, cosines.sum(), n * mean.square().sum(), (x - mean).square().sum()))


def _grouped(x: Tensor, member: Tensor) -> Tensor:
    """`tokens` with groups. member: (B, K, T) of ones and zeros."""
    x = torch.where(member.any(dim=1)[..., None], x, 0.0)  # padding may hold anything
    n = member.sum(dim=-1)
    there = n > 1
    unit = torch.nn.functional.normalize(x, dim=-1, eps=1e-30)
    pair_sums = (member @ unit).square().sum(dim=-1) - (member @ unit.square()).sum(dim=-1)
    cosines = torch.where(there, pair_sums / (n * (n - 1)).clamp(min=1), 0.0)
    member = member * there[..., None]
    mean = member @ x / n.clamp(min=1)[..., None]
    away = (x - member.mT @ mean).square().sum(dim=-1) * member.sum(dim=1)
    spread = (mean.square().sum(dim=-1) * n).sum()
    return torch.stack((there.sum(dtype=torch.float32), cosines.sum(), spread, away.sum()))
