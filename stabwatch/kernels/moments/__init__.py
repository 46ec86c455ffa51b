"""`moments`: count, sum of squares, non-finite count and absolute maximum of a tensor. `moments_full`: seven fields.

Sums and maxima run over the finite elements; the count is of all elements.
"""

from __future__ import annotations

from torch import Tensor

from stabwatch.kernels.dispatch import choose
from stabwatch.kernels.merge import Aggregates, merge_
from stabwatch.kernels.moments import eager
from stabwatch.signals.reductions import MOMENTS


def moments(x: Tensor) -> Aggregates:
    """Count, sum of squares, non-finite count, absolute maximum.

    x: floating point, any shape with at least one element.
    """
    if choose(x).fused:
        from stabwatch.kernels.moments import fused

        return fused.moments(x)
    return eager.moments(x)


def update_moments(x: Tensor, accumulator: Tensor) -> None:
    """Merge the moments of `x` into an accumulator in place: float32 (4,)."""
    if x.device == accumulator.device and choose(x).fused:
        from stabwatch.kernels.moments import fused

        fused.moments(x, into=accumulator)
    else:
        merge_(MOMENTS, accumulator, moments(x))


def moments_full(x: Tensor) -> Tensor:
    """float32 (7,): count, sum, sum of squares, sum of fourth powers, zeros, non-finite count, absolute maximum.

    x: floating point, any shape. Fourth powers of numbers beyond 4e9 are infinite in float32.
    """
    if choose(x).fused:
        from stabwatch.kernels.moments import fused

        return fused.moments_full(x)
    return eager.moments_full(x)
