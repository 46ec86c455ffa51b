"""Plain torch, from logsumexps that somebody has computed already."""

from __future__ import annotations

import torch
from torch import Tensor


def row_statistics(lse: Tensor) -> Tensor:
    """lse: any shape, at least one row -> float32 (5,): count, sum, sum of squares, non-finite count, maximum."""
    lse = lse.float()
    finite = torch.isfinite(lse)
    kept = torch.where(finite, lse, 0.0)
    rows = float(lse.numel())
    return torch.stack(
        (
            torch.full((), rows, dtype=torch.float32, device=lse.device),
            kept.sum(),
            kept.square().sum(),
            rows - finite.sum(dtype=torch.float32),
            torch.where(finite, lse, -torch.inf).amax(),
        )
    )
