"""The definition, in float64: the largest eigenvalue of a dense matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(hessian: Tensor, scale: Tensor | None = None) -> float:
    """Of S H S, where S is diagonal. hessian (n, n), scale (n,)."""
    x = hessian.double()
    x = x if scale is None else scale.double()[:, None] * x * scale.double()
    return torch.linalg.eigvalsh((x + x.mT) / 2)[-1].item()
