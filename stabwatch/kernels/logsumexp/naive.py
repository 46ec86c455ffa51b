"""The definition, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def row_statistics(logits: Tensor) -> Tensor:
    """logits (N, V) -> float64 (5,): count, sum, sum of squares, non-finite count, maximum over the rows."""
    lse = torch.logsumexp(logits.detach().double(), dim=-1)
    kept = lse[torch.isfinite(lse)]
    peak = kept.max().item() if len(kept) else float("-inf")
    return torch.tensor([len(lse), kept.sum().item(), kept.square().sum().item(), len(lse) - len(kept), peak]).double()
