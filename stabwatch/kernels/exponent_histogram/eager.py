"""Plain torch, on the bits of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.exponent_histogram.bins import BIAS, BINS, FP16_LEAST, FP16_NORMAL, HIGH, LOW
from stabwatch.kernels.where import on_host


def exponent_histogram(x: Tensor) -> Tensor:
    """float32 (BINS,) counts: zero, exponents LOW to HIGH, not finite."""
    bits = x.detach().float().flatten().view(torch.int32) & 0x7FFFFFFF
    field = bits >> 23
    if on_host(x):
        return _of_fields(torch.bincount(field, minlength=256), (bits == 0).sum())
    exponent = (field - BIAS).clamp(LOW, HIGH) + (1 - LOW)
    bins = torch.where(bits == 0, 0, torch.where(field == 255, BINS - 1, exponent)).long()
    counts = torch.zeros(BINS, dtype=torch.int64, device=x.device)  # float32 would stop counting at 2**24
    return counts.scatter_add_(0, bins, torch.ones_like(bins)).float()


def _of_fields(fields: Tensor, zeros: Tensor) -> Tensor:
    """Counts of the 256 exponent fields to counts of bins. Exponents beyond LOW and HIGH go to the end bins."""
    low, high = BIAS + LOW, BIAS + HIGH
    first, last = fields[: low + 1].sum() - zeros, fields[high:255].sum()
    return torch.cat((zeros[None], first[None], fields[low + 1 : high], last[None], fields[255:])).float()


def summary(counts: Tensor) -> Tensor:
    """float32 (BINS,) counts -> float32 (4,): see `exponents`."""
    finite = counts[1:-1]
    exponent = torch.arange(LOW, HIGH + 1, dtype=torch.float32, device=counts.device)
    subnormal = finite[FP16_LEAST - LOW : FP16_NORMAL - LOW].sum()
    return torch.stack((finite.sum(), finite @ exponent, finite @ exponent.square(), subnormal))
