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
