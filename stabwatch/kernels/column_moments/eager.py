"""Plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def column_sums(x: Tensor) -> Tensor:
    """x (B, T, D) -> float32 (B, D), the sum over T."""
    return x.detach().sum(dim=1, dtype=torch.float32)
