"""Plain torch, without the matrix of pairs: the squared length of the sum of unit vectors holds their cosines."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.column_moments import column_sums

MOST = 256
"""Tokens of a sample that are compared, evenly spread."""


def tokens(x: Tensor) -> Tensor:
    """x (B, T, D), T >= 2 -> float32 (4,): samples, sum of their mean off-diagonal cosines, |mean|^2, |centred|^2."""
    x = x.detach()[:, :: max(1, x.shape[1] // MOST)].float()
    n = x.shape[1]
    unit = torch.nn.functional.normalize(x, dim=-1, eps=1e-30)
    cosines = (column_sums(unit).square().sum(dim=-1) - unit.square().sum(dim=(1, 2))) / (n * (n - 1))
    mean = column_sums(x)[:, None] / n
    samples = torch.full((), float(len(x)), device=x.device)
    return torch.stack((samples, cosines.sum(), n * mean.square().sum(), (x - mean).square().sum()))
