"""`exponent_histogram`: number of elements of a tensor by binary exponent.

`exponents`: a summary of the histogram.

Bins: zero; exponents LOW to HIGH (1.0 has exponent 0), with exponents beyond them in the end bins; not finite.
"""

from __future__ import annotations

from torch import Tensor

from stabwatch.kernels.dispatch import choose
from stabwatch.kernels.exponent_histogram import eager
from stabwatch.kernels.exponent_histogram.bins import BINS as BINS
from stabwatch.kernels.exponent_histogram.bins import HIGH as HIGH
from stabwatch.kernels.exponent_histogram.bins import LOW as LOW


def exponents(x: Tensor) -> Tensor:
    """x, any shape -> float32 (4,): finite nonzero elements, sums of their exponents and of the squared exponents,
    elements that are subnormal in float16.
    """
    return eager.summary(exponent_histogram(x))


def exponent_histogram(x: Tensor) -> Tensor:
    """x, floating point, any shape, as float32 -> float32 (BINS,) counts."""
    if choose(x).fused:
        from stabwatch.kernels.exponent_histogram import fused

        return fused.exponent_histogram(x)
    return eager.exponent_histogram(x)
