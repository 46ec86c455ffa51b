"""Plain torch, without the matrix of pairs: the squared length of the sum of unit vectors holds their cosines."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.column_moments import column_sums

MOST = 256
"""Tokens of a sample that are compared, evenly spread."""


def tokens(x: Tensor, groups: Tensor | None = None) -> Tensor:
    """x (B, T, D), T >= 2 -> float32 (4,): samples, sum of their mean off-diagonal cosines, |mean|^2, |centred|^2.

    groups: bool (K, B, T), no token in two: each of two tokens or more is a sample of its own, and what is in none is
    left out.
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
    """member: (B, K, T) of ones and zeros."""
    x = torch.where(member.any(dim=1)[..., None], x, 0.0)  # padding may hold anything
    n = member.sum(dim=-1)
    there = n > 1
    unit = torch.nn.functional.normalize(x, dim=-1, eps=1e-30)
    alike = (member @ unit).square().sum(dim=-1) - (member @ unit.square()).sum(dim=-1)
    cosines = torch.where(there, alike / (n * (n - 1)).clamp(min=1), 0.0)
    member = member * there[..., None]
    mean = member @ x / n.clamp(min=1)[..., None]
    away = (x - member.mT @ mean).square().sum(dim=-1) * member.sum(dim=1)
    spread = (mean.square().sum(dim=-1) * n).sum()
    return torch.stack((there.sum(dtype=torch.float32), cosines.sum(), spread, away.sum()))
