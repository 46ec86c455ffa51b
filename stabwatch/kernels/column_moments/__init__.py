"""`column_moments`: sums over the tokens of each sample, for token means."""

from __future__ import annotations

from torch import Tensor

from stabwatch.kernels.column_moments import eager
from stabwatch.kernels.dispatch import choose


def column_sums(x: Tensor) -> Tensor:
    """x (B, T, D), floating point -> float32 (B, D), the sum over T. A non-finite element makes its sum non-finite."""
    if choose(x).fused:
        from stabwatch.kernels.column_moments import fused

        return fused.column_sums(x)
    return eager.column_sums(x)
