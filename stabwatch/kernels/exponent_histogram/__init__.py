"""`exponent_histogram`: how many elements of a tensor have which binary exponent.

`exponents`: a summary of that.

Bins: zero; exponents LOW to HIGH, where 1.0 has exponent 0, what lies beyond counted at the ends; not finite.
"""

from __future__ import annotations

from torch import Tensor

from stabwatch.kernels.dispatch import choose
from stabwatch.kernels.exponent_histogram import eager
from stabwatch.kernels.exponent_histogram.bins import BINS as BINS
from stabwatch.kernels.exponent_histogram.bins import HIGH as HIGH
from stabwatch.kernels.exponent_histogram.bins import LOW as LOW


def exponents(x: Tensor) -> Tensor:
    """x, any shape -> float32 (4,): finite numbers that are not zero, sums of their exponents and of the squares,
    and how many of them are subnormal in float16.
    """
    return eager.summary(exponent_histogram(x))


def exponent_histogram(x: Tensor) -> Tensor:
    """x, floating point, any shape, as float32 -> float32 (BINS,) counts."""
    if choose(x).fused:
        from stabwatch.kernels.exponent_histogram import fused

        return fused.exponent_histogram(x)
    return eager.exponent_histogram(x)
