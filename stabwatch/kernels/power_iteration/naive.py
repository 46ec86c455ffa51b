"""The definition: the singular value decomposition in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(matrix: Tensor, k: int) -> Tensor:
    """The k largest singular values of (R, C), float64."""
    return torch.linalg.svdvals(matrix.detach().double())[:k]
