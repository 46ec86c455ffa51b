"""Plain torch, from logsumexps that the caller has."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stabwatch.kernels.merge import Aggregates
from stabwatch.kernels.where import on_host


def row_statistics(lse: Tensor) -> Aggregates:
    """lse: any shape, at least one row -> count, sum, sum of squares, non-finite count, maximum."""
    lse = lse.float()
    if on_host(lse):
        return _host(lse.flatten())
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


def _host(lse: Tensor) -> tuple[float, ...]:
    low, high = (x.item() for x in torch.aminmax(lse))
    if math.isfinite(low) and math.isfinite(high):
        return float(len(lse)), lse.sum().item(), torch.dot(lse, lse).item(), 0.0, high
    kept = lse[torch.isfinite(lse)]
    inner = _host(kept) if len(kept) else (0.0, 0.0, 0.0, 0.0, -math.inf)
    return float(len(lse)), inner[1], inner[2], float(len(lse) - len(kept)), inner[4]
