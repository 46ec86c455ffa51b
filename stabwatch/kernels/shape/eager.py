"""Plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.moments import moments_full

SIGMAS = 5.0


def shape(x: Tensor) -> Tensor:
    """x (N, D) -> float32 (4,): finite elements, their sums of squares and fourth powers, outliers of their rows.

    Fourth powers of numbers beyond 4e9 are infinite in float32; then the kurtosis is not finite.
    """
    count, _, squares, fourths, _, nonfinite, _ = moments_full(x)
    x = x.detach().float()
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    outliers = ((x - mean).square() > SIGMAS**2 * variance).sum(dtype=torch.float32)
    return torch.stack((count - nonfinite, squares, fourths, outliers))
