"""The definition, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(x: Tensor) -> Tensor:
    """float64 (4,): count, sum of squares, non-finite count, absolute maximum."""
    x = x.detach().double().flatten()
    finite = x[torch.isfinite(x)]
    peak = finite.abs().max().item() if len(finite) else 0.0
    return torch.tensor([len(x), finite.square().sum().item(), len(x) - len(finite), peak], dtype=torch.float64)


def moments_full(x: Tensor) -> Tensor:
    """float64 (7,): count, sum, sum of squares, sum of fourth powers, zeros, non-finite count, absolute maximum."""
    count, squares, bad, peak = moments(x)
    x = x.detach().double().flatten()
    finite = x[torch.isfinite(x)]
    return torch.stack((count, finite.sum(), squares, finite.pow(4).sum(), (x == 0).sum().double(), bad, peak))
