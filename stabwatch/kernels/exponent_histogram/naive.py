"""The definition, one number after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stabwatch.kernels.exponent_histogram.bins import BINS, HIGH, LOW


def exponent_histogram(x: Tensor) -> Tensor:
    """float64 (BINS,) counts of floor(log2 |x|), between those of zeros and of what is not finite."""
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
