"""The definition, in float64."""

from __future__ import annotations

from torch import Tensor


def column_sums(x: Tensor) -> Tensor:
    """x (B, T, D) -> float64 (B, D), the sum over T."""
    return x.detach().double().sum(dim=1)
