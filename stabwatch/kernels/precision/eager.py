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
    peak = peak_of(a)
    lost = [a <= FP16_TINY, a <= peak * (E4M3_TINY / E4M3_MAX), a <= peak * (E5M2_TINY / E5M2_MAX)]
    mx = _blocks(a, MX_BLOCK)
    exponent = torch.frexp(mx.amax(dim=-1, keepdim=True)).exponent - 3  # frexp's mantissa begins at one half
    nv = _blocks(a, NV_BLOCK)
    unit = peak / (E2M1_MAX * E4M3_MAX)
    scale = e4m3(nv.amax(dim=-1, keepdim=True) / E2M1_MAX / unit) * unit
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


def peak_of(a: Tensor) -> Tensor:
    """The largest finite number."""
    return torch.where(torch.isfinite(a), a, 0.0).amax().float()


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dtype=torch.float32)


def _blocks(a: Tensor, size: int) -> Tensor:
    """(N, blocks, size), padded with zeros, which are never lost."""
    return F.pad(a, (0, -a.shape[-1] % size)).unflatten(-1, (-1, size))


def e4m3(x: Tensor) -> Tensor:
    return x.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float()
