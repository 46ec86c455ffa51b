"""`multi_tensor`: moments and changes of many tensors at once, by group (the parameters of one layer)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stabwatch.kernels.dispatch import choose
from stabwatch.kernels.multi_tensor import eager


def grouped_moments(tensors: Sequence[Tensor], group: Sequence[int], out: Tensor) -> None:
    """Merge the moments of each tensor into row `group[i]` of `out`: float32 (groups, 4)."""
    if choose(out).fused:
        from stabwatch.kernels.multi_tensor import fused

        if fused.takes_moments(tensors, out):
            return fused.grouped_moments(tensors, group, out)
    return eager.grouped_moments(tensors, group, out)


def grouped_change(before: Sequence[Tensor], after: Sequence[Tensor], group: Sequence[int], out: Tensor) -> None:
    """Add count, sum of squares of the change and of the old tensor to row `group[i]` of `out`: float32 (groups, 3).

    Overwrites the tensors of `before` with the change.
    """
    if choose(out).fused:
        from stabwatch.kernels.multi_tensor import fused

        if fused.takes_change(before, after, out):
            return fused.grouped_change(before, after, group, out)
    return eager.grouped_change(before, after, group, out)
