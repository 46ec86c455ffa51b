"""Plain torch on `_foreach` operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.moments.eager import host_moments, host_sumsq


def grouped_moments(tensors: Sequence[Tensor], group: Sequence[int], out: Tensor) -> None:
    """Merge the moments of each tensor into row `group[i]` of `out`: float32 (groups, 4)."""
    if tensors[0].device.type == "cpu":
        rows = torch.tensor([host_moments(x) for x in tensors], dtype=torch.float32)
    else:
        rows = _device_rows(tensors)
    index = device_constant(tuple(group), torch.int64, out.device)
    out[:, :3].index_add_(0, index, rows[:, :3])
    out[:, 3].scatter_reduce_(0, index, rows[:, 3], reduce="amax")


def _device_rows(tensors: Sequence[Tensor]) -> Tensor:
    device = tensors[0].device
    finite = [torch.isfinite(x) for x in tensors]
    kept = [torch.where(f, x.float(), 0.0) for f, x in zip(finite, tensors, strict=True)]
    counts = device_constant(tuple(float(x.numel()) for x in tensors), torch.float32, device)
    whole = torch.stack([f.sum(dtype=torch.float32) for f in finite])
    norms = torch.stack(list(torch._foreach_norm(kept)))
    peaks = torch.stack(list(torch._foreach_norm(kept, float("inf"))))
    return torch.stack((counts, norms.square(), counts - whole, peaks), dim=1)


def grouped_change(before: Sequence[Tensor], after: Sequence[Tensor], group: Sequence[int], out: Tensor) -> None:
    """Add count, sum of squares of the change and of the old tensor to row `group[i]` of `out`: float32 (groups, 3).

    Overwrites the tensors of `before` with the change.
    """
    if before[0].device.type == "cpu":
        rows = torch.tensor([_host_change(b, a) for b, a in zip(before, after, strict=True)], dtype=torch.float32)
    else:
        counts = device_constant(tuple(float(b.numel()) for b in before), torch.float32, out.device)
        old = _sumsq(before)
        torch._foreach_sub_(list(before), list(after))
        rows = torch.stack((counts, _sumsq(before), old), dim=1)
    out.index_add_(0, device_constant(tuple(group), torch.int64, out.device), rows.to(out.device))


def _host_change(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """One tensor after the other, so that later operations find it in the cache."""
    old = host_sumsq(before)
    return float(before.numel()), host_sumsq(before.sub_(after)), old


def _sumsq(tensors: Sequence[Tensor]) -> Tensor:
    wide = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    return torch.stack([n.float() for n in torch._foreach_norm(list(tensors), 2, wide)]).square()
