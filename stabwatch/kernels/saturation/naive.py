"""The definition, in float64, by central differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def saturation(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """float64 (4,): elements of x (N, D), those with |slope| < 0.01, units, units saturated in each row."""
    x = x.detach().double()
    h = 1e-6
    flat = ((function(x + h) - function(x - h)) / (2 * h)).abs() < 0.01
    stuck = sum(bool(column.all()) for column in flat.T)
    return torch.tensor([x.numel(), int(flat.sum()), x.shape[1], stuck], dtype=torch.float64)
