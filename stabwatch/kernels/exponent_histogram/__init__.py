"""`exponent_histogram`: how many elements of a tensor have which binary exponent.

Bins: zero; exponents LOW to HIGH, where 1.0 has exponent 0, what lies beyond counted at the ends; not finite.
"""

from __future__ import annotations

from torch import Tensor

from stabwatch.kernels.dispatch import choose
from stabwatch.kernels.exponent_histogram import eager
from stabwatch.kernels.exponent_histogram.bins import BINS as BINS
from stabwatch.kernels.exponent_histogram.bins import HIGH as HIGH
from stabwatch.kernels.exponent_histogram.bins import LOW as LOW


def exponent_histogram(x: Tensor) -> Tensor:
    """x, floating point, any shape, as float32 -> float32 (BINS,) counts."""
    if choose(x).fused:
        from stabwatch.kernels.exponent_histogram import fused

        return fused.exponent_histogram(x)
    return eager.exponent_histogram(x)
