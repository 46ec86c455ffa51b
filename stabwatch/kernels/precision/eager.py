"""Plain torch: comparison with the smallest number of each format that does not round to zero (ties go to zero)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.where import on_host

FP16_TINY, FP16_HUGE = 2.0**-25, 65520.0
"""Half the smallest subnormal number; the smallest number that rounds to infinity."""
E4M3_TINY, E4M3_MAX = 2.0**-10, 448.0
E5M2_TINY, E5M2_MAX = 2.0**-17, 57344.0
E2M1_TINY, E2M1_MAX = 0.25, 6.0
MX_BLOCK, NV_BLOCK = 32, 16
TOGETHER = 1 << 17
"""Numbers of several tensors that are looked at together."""


def precision(x: Tensor) -> Tensor:
    """x (N, D) -> float32 (8,): count, zeros, fp16 lost, fp16 saturated, lost in e4m3, e5m2, MXFP4, NVFP4.

    Blocks run along the last dimension. Elements that are not finite count as saturated in fp16.
    """
    return precisions([x])[0]


def precisions(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same of several tensors: most are small, and each operation has a cost."""
    return [found for some in together(tensors) for found in _precisions([tensors[i] for i in some])]


def together(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of successive tensors that are on one device and fit into a processor's cache together."""
    taken: list[int] = []
    size = 0
    for i, x in enumerate(tensors):
        if taken and (x.device != tensors[i - 1].device or size + x.numel() > TOGETHER):
            yield taken
            taken, size = [], 0
        taken.append(i)
        size += x.numel()
    if taken:
        yield taken


def _precisions(tensors: Sequence[Tensor]) -> list[Tensor]:
    parts = [F.pad(x.detach().float().abs(), (0, -x.shape[-1] % MX_BLOCK)).reshape(-1, MX_BLOCK) for x in tensors]
    lengths, padded = (
        [len(part) for part in parts],
        [part.numel() - x.numel() for part, x in zip(parts, tensors, strict=True)],
    )
    mx = torch.cat(parts)
    peak = spread_over([peak_of(part) for part in parts], lengths)
    exponent = torch.frexp(mx.amax(dim=-1, keepdim=True)).exponent - 3  # frexp's mantissa begins at one half
    nv = mx.view(-1, NV_BLOCK)
    unit = (peak / (E2M1_MAX * E4M3_MAX)).repeat_interleave(MX_BLOCK // NV_BLOCK, dim=0)
    scale = e4m3(nv.amax(dim=-1, keepdim=True) / E2M1_MAX / unit) * unit
    zero = mx == 0
    masks = (
        zero,
        mx <= FP16_TINY,
        ~(mx < FP16_HUGE),
        mx <= peak * (E4M3_TINY / E4M3_MAX),
        mx <= peak * (E5M2_TINY / E5M2_MAX),
        mx <= torch.ldexp(torch.full_like(mx[:, :1], E2M1_TINY), exponent),
        (((nv <= E2M1_TINY * scale) | (scale == 0)).view(mx.shape) | zero),  # a scale may itself round to zero
    )
    counts = [torch.count_nonzero(part) for mask in masks for part in mask.split(lengths)]
    zeros, *others = torch.stack(counts).view(len(masks), -1).float()
    found = [others[1] if i == 1 else count - zeros for i, count in enumerate(others)]  # zeros are never lost
    sizes = device_constant(tuple(float(x.numel()) for x in tensors), torch.float32, mx.device)
    added = device_constant(tuple(map(float, padded)), torch.float32, mx.device)
    return [*torch.stack((sizes, zeros - added, *found), dim=1)]


def spread_over(numbers: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """A number of each tensor, (), at each of its blocks: (blocks, 1)."""
    return torch.cat([x.expand(n) for x, n in zip(numbers, lengths, strict=True)])[:, None]


def peak_of(a: Tensor) -> Tensor:
    """The largest finite number of some that are not negative."""
    peak = a.amax()
    if on_host(a) and math.isfinite(peak.item()):
        return peak.float()
    return torch.where(torch.isfinite(a), a, 0.0).amax().float()


def e4m3(x: Tensor) -> Tensor:
    return x.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float()
