"""Plain torch, on the bits of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.exponent_histogram.bins import BIAS, BINS, HIGH, LOW
from stabwatch.kernels.where import on_host


def exponent_histogram(x: Tensor) -> Tensor:
    """float32 (BINS,) counts: zero, exponents LOW to HIGH, not finite."""
    bits = x.detach().float().flatten().view(torch.int32) & 0x7FFFFFFF
    field = bits >> 23
    exponent = (field - BIAS).clamp(LOW, HIGH) + (1 - LOW)
    bins = torch.where(bits == 0, 0, torch.where(field == 255, BINS - 1, exponent)).long()
    if on_host(x):
        return torch.bincount(bins, minlength=BINS).float()
    counts = torch.zeros(BINS, dtype=torch.int64, device=x.device)  # float32 would stop counting at 2**24
    return counts.scatter_add_(0, bins, torch.ones_like(bins)).float()
