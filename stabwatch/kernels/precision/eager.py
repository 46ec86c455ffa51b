"""Plain torch: comparison with the smallest number of each format that does not round to zero (ties go to zero)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FP16_TINY, FP16_HUGE = 2.0**-25, 65520.0
"""Half the smallest subnormal number; the smallest number that rounds to infinity."""
E4M3_TINY, E4M3_MAX = 2.0**-10, 448.0
E5M2_TINY, E5M2_MAX = 2.0**-17, 57344.0
E2M1_TINY, E2M1_MAX = 0.25, 6.0
MX_BLOCK, NV_BLOCK = 32, 16


def precision(x: Tensor) -> Tensor:
    """x (N, D) -> float32 (8,): count, zeros, fp16 lost, fp16 saturated, lost in e4m3, e5m2, MXFP4, NVFP4.

    Blocks run along the last dimension. Elements that are not finite count as saturated in fp16.
    """
    a = x.detach().float().abs()
    zero = a == 0
    peak = _peak(a)
    lost = [a <= FP16_TINY, a <= peak * (E4M3_TINY / E4M3_MAX), a <= peak * (E5M2_TINY / E5M2_MAX)]
    mx = _blocks(a, MX_BLOCK)
    exponent = torch.frexp(mx.amax(dim=-1, keepdim=True)).exponent - 3  # frexp's mantissa begins at one half
    nv = _blocks(a, NV_BLOCK)
    unit = peak / (E2M1_MAX * E4M3_MAX)
    scale = _e4m3(nv.amax(dim=-1, keepdim=True) / E2M1_MAX / unit) * unit
    counts = [
        torch.full_like(peak, float(a.numel())),
        zero.sum(dtype=torch.float32),
        _count(lost[0] & ~zero),
        _count(~(a < FP16_HUGE)),
        _count(lost[1] & ~zero),
        _count(lost[2] & ~zero),
        _count((mx <= torch.ldexp(torch.full_like(mx, E2M1_TINY), exponent)) & (mx != 0)),
        _count(((nv <= E2M1_TINY * scale) | (scale == 0)) & (nv != 0)),  # a scale may itself round to zero
    ]
    return torch.stack(counts)


def rounding(x: Tensor, whole: Tensor | None = None) -> Tensor:
    """x (N, D) -> float32 (6,): count, sum of squares, sums of squared errors of e4m3, e5m2, MXFP4 and NVFP4.

    To the nearest number, with the scales of `precision`. Elements that are not finite are left out. whole: what x is a
    sample of, whose maximum sets the scales.
    """
    x = x.detach().float()
    finite = torch.isfinite(x)
    x = torch.where(finite, x, 0.0)
    peak = x.abs().amax() if whole is None else _peak(whole.detach().abs())
    mx, nv = _blocks(x, MX_BLOCK), _blocks(x, NV_BLOCK)
    exponent = torch.frexp(mx.abs().amax(dim=-1, keepdim=True)).exponent - 3
    unit = peak / (E2M1_MAX * E4M3_MAX)
    scale = _e4m3(nv.abs().amax(dim=-1, keepdim=True) / E2M1_MAX / unit) * unit
    some = torch.where(scale > 0, scale, 1.0)
    errors = (
        _fp8(x, peak, torch.float8_e4m3fn, E4M3_MAX) - x,
        _fp8(x, peak, torch.float8_e5m2, E5M2_MAX) - x,
        torch.ldexp(_e2m1(torch.ldexp(mx, -exponent)), exponent) - mx,
        torch.where(scale > 0, _e2m1(nv / some) * scale, 0.0) - nv,
    )
    return torch.stack((finite.sum(dtype=torch.float32), x.square().sum(), *(e.square().sum() for e in errors)))


def _peak(a: Tensor) -> Tensor:
    """The largest finite number."""
    return torch.where(torch.isfinite(a), a, 0.0).amax().float()


def _fp8(x: Tensor, peak: Tensor, kind: torch.dtype, largest: float) -> Tensor:
    scale = largest / torch.where(peak > 0, peak, 1.0)
    return (x * scale).clamp(-largest, largest).to(kind).float() / scale


def _e2m1(x: Tensor) -> Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with the sign; ties go to the even mantissa."""
    size = x.abs().clamp(max=E2M1_MAX)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((size / step).round() * step, x)


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dtype=torch.float32)


def _blocks(a: Tensor, size: int) -> Tensor:
    """(N, blocks, size), padded with zeros, which are never lost."""
    return F.pad(a, (0, -a.shape[-1] % size)).unflatten(-1, (-1, size))


def _e4m3(x: Tensor) -> Tensor:
    return x.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float()
