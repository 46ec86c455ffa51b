"""Plain torch on `_foreach` operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabwatch.kernels.moments.eager import host_moments


def grouped_moments(tensors: Sequence[Tensor], group: Sequence[int], out: Tensor) -> None:
    """Merge the moments of each tensor into row `group[i]` of `out`: float32 (groups, 4)."""
    if tensors[0].device.type == "cpu":
        rows = torch.tensor([host_moments(x) for x in tensors], dtype=torch.float32)
    else:
        rows = _device_rows(tensors)
    index = torch.tensor(group, device=out.device)
    out[:, :3].index_add_(0, index, rows[:, :3])
    out[:, 3].scatter_reduce_(0, index, rows[:, 3], reduce="amax")


def _device_rows(tensors: Sequence[Tensor]) -> Tensor:
    device = tensors[0].device
    finite = [torch.isfinite(x) for x in tensors]
    kept = [torch.where(f, x.float(), 0.0) for f, x in zip(finite, tensors, strict=True)]
    counts = torch.tensor([float(x.numel()) for x in tensors], device=device)
    whole = torch.stack([f.sum(dtype=torch.float32) for f in finite])
    norms = torch.stack(list(torch._foreach_norm(kept)))
    peaks = torch.stack(list(torch._foreach_norm(kept, float("inf"))))
    return torch.stack((counts, norms.square(), counts - whole, peaks), dim=1)


def grouped_sumsq(tensors: Sequence[Tensor], group: Sequence[int], out: Tensor) -> None:
    """Add the sum of squares of each tensor to `out[group[i]]`: float32 (groups,)."""
    wide = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    norms = torch.stack([n.float() for n in torch._foreach_norm(list(tensors), 2, wide)])
    out.index_add_(0, torch.tensor(group, device=out.device), norms.square())
