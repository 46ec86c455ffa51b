"""The definition, in float64: the singular values of dense matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_and_norm(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Largest singular value and Frobenius norm of each of (B, m, n): (B,), (B,)."""
    values = torch.linalg.svdvals(matrices.double())
    return values[:, 0], values.square().sum(dim=1).sqrt()
