"""Plain torch: two reads on the CPU, one fused read under inductor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stabwatch.kernels.merge import Partials
from stabwatch.kernels.where import on_host


def moments(x: Tensor) -> Partials:
    """Count, sum of squares, non-finite count, absolute maximum.

    x: floating point, any shape with at least one element.
    """
    if on_host(x):
        return host_moments(x)
    wide = x.float()
    finite = torch.isfinite(wide)
    kept = torch.where(finite, wide, 0.0)
    return torch.stack(
        (
            torch.full((), float(x.numel()), dtype=torch.float32, device=x.device),
            kept.square().sum(),
            float(x.numel()) - finite.sum(dtype=torch.float32),
            kept.abs().amax(),
        )
    )


def host_moments(x: Tensor) -> tuple[float, float, float, float]:
    """The same for a CPU tensor, as numbers; a third read only when something is not finite."""
    low, high = torch.aminmax(x)
    peak = max(abs(low.item()), abs(high.item()))
    if math.isfinite(peak):
        return float(x.numel()), torch.linalg.vector_norm(x, dtype=norm_dtype(x)).item() ** 2, 0.0, peak
    finite = x[torch.isfinite(x)]
    inner = host_moments(finite) if finite.numel() else (0.0, 0.0, 0.0, 0.0)
    return float(x.numel()), inner[1], float(x.numel() - finite.numel()), inner[3]


def norm_dtype(x: Tensor) -> torch.dtype:
    """What norms of `x` are accumulated in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
