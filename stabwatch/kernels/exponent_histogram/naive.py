"""The definition, one number after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stabwatch.kernels.exponent_histogram.bins import BINS, HIGH, LOW


def exponent_histogram(x: Tensor) -> Tensor:
    """float64 (BINS,) counts of zeros, of each floor(log2 |x|), and of non-finite elements."""
    counts = torch.zeros(BINS, dtype=torch.float64)
    for value in x.detach().double().flatten().tolist():
        if not math.isfinite(value):
            counts[-1] += 1
        elif value == 0:
            counts[0] += 1
        else:
            exponent = math.frexp(value)[1] - 1  # frexp's mantissa begins at one half
            counts[1 + min(max(exponent, LOW), HIGH) - LOW] += 1
    return counts


def exponents(x: Tensor) -> Tensor:
    """float64 (4,): finite nonzero elements, sums of exponents and their squares, subnormal ones in float16."""
    kept = [v for v in x.detach().double().flatten().tolist() if math.isfinite(v) and v]
    found = [min(max(math.frexp(v)[1] - 1, LOW), HIGH) for v in kept]
    small = [e for e in found if -25 <= e < -14]
    return torch.tensor([len(kept), sum(found), sum(e * e for e in found), len(small)], dtype=torch.float64)
