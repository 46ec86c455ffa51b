"""How far narrow formats would move the numbers of a tensor. Plain torch: nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.precision.eager import (
    E2M1_MAX,
    E4M3_MAX,
    E5M2_MAX,
    MX_BLOCK,
    NV_BLOCK,
    e4m3,
    peak_of,
    spread_over,
    together,
)

HI_BLOCK = 64
HI_LARGEST, HI_SCALES = 7.0, (2.0**-48, 49152.0)
"""Largest number of a block of HiF4 under its scale, and the smallest and the largest scale (e6m2)."""
UE5M3_TINY, UE5M3_MAX = 2.0**-14, 114688.0
"""Smallest normal number, and the largest."""
EXPONENT = 0x7F800000
"""The bits of the exponent of a float32."""
SIGNS = (1, -1, -1, 1, 1, 1, -1, 1, -1, -1, 1, -1, 1, 1, -1, -1)
"""Drawn once: those of the random Hadamard rotation of 16 numbers."""
ROTATION = tuple((-1.0) ** (i & j).bit_count() * SIGNS[i] / 4 for i in range(16) for j in range(16))


def rounding(x: Tensor, whole: Tensor | None = None) -> Tensor:
    """x (N, D) -> float32 (14,): count, sum of squares, sums of squared errors.

    To the nearest number, in e4m3, e5m2, int8, MXFP4, NVFP4, HiF4, and e2m1 in blocks of 16 with a scale in UE5M3; then
    of MXFP4 and NVFP4 after a random Hadamard rotation of each 16 numbers, of NVFP4 without the scale of the tensor,
    and of MXFP4 and NVFP4 with stochastic rounding (the expected error, nothing is drawn). Scales are those of
    `precision`. Elements that are not finite are left out. whole: what x is a sample of, whose maximum sets the scale
    of the tensor; that of rotated numbers is set by the sample.
    """
    return roundings([x], [x if whole is None else whole])[0]


def roundings(samples: Sequence[Tensor], wholes: Sequence[Tensor]) -> list[Tensor]:
    """The same of several tensors: most are small, and each operation has a cost."""
    parts = together(samples)
    return [found for some in parts for found in _roundings([samples[i] for i in some], [wholes[i] for i in some])]


def _roundings(samples: Sequence[Tensor], wholes: Sequence[Tensor]) -> list[Tensor]:
    parts = [F.pad(x.detach().float(), (0, -x.shape[-1] % HI_BLOCK)).reshape(-1, HI_BLOCK) for x in samples]
    lengths, padded = (
        [len(part) for part in parts],
        [part.numel() - x.numel() for part, x in zip(parts, samples, strict=True)],
    )
    x = torch.cat(parts)
    finite = torch.isfinite(x)
    x = torch.where(finite, x, 0.0)  # zeros have no error
    peak = spread_over([peak_of(whole.detach().float().abs()) for whole in wholes], lengths)
    blocks = x.view(-1, NV_BLOCK)
    turned = _rotated(blocks)
    highest = spread_over([part.amax() for part in turned.view(-1, HI_BLOCK).abs().split(lengths)], lengths)
    top = _top(blocks) / E2M1_MAX
    mx, nv = _power_of_two(blocks), _nvfp4(blocks, _of_parts(peak))
    errors = (
        _fp8(x, peak, torch.float8_e4m3fn, E4M3_MAX).sub_(x),
        _fp8(x, peak, torch.float8_e5m2, E5M2_MAX).sub_(x),
        _int8(x, peak).sub_(x),
        _fp4(blocks, mx),
        _fp4(blocks, nv),
        _hif4(x).sub_(x),
        _fp4(blocks, _ue5m3(top)),
        _fp4(turned, _power_of_two(turned)),
        _fp4(turned, _nvfp4(turned, _of_parts(highest))),
        _fp4(blocks, e4m3(top)),
    )
    sums = (finite.float(), x.square(), *(e.square_() for e in errors), _noise(blocks, mx), _noise(blocks, nv))
    of_blocks = torch.stack([each.view(-1, HI_BLOCK).sum(dim=1) for each in sums])
    found = torch.stack([part.sum(dim=1) for part in of_blocks.split(lengths, dim=1)])
    found[:, 0] -= device_constant(tuple(map(float, padded)), torch.float32, x.device)
    return [*found]


def _of_parts(numbers: Tensor) -> Tensor:
    """A number of each 64 as one of each 16."""
    return numbers.repeat_interleave(HI_BLOCK // NV_BLOCK, dim=0)


def _fp4(blocks: Tensor, scale: Tensor) -> Tensor:
    """What rounding to e2m1 under these scales adds to each number; a scale of zero leaves nothing."""
    size = blocks / torch.where(scale > 0, scale, 1.0)
    return _e2m1(size).mul_(scale).sub_(blocks)


def _noise(blocks: Tensor, scale: Tensor) -> Tensor:
    """Its expected square where rounding is stochastic."""
    found = _variance(blocks / torch.where(scale > 0, scale, 1.0)).mul_(scale.square())
    return torch.where(scale > 0, found, blocks.square())


def _top(blocks: Tensor) -> Tensor:
    return blocks.abs().amax(dim=-1, keepdim=True)


def _power_of_two(blocks: Tensor) -> Tensor:
    """Of MXFP4, for each 16 numbers of its blocks of 32."""
    top = _top(blocks).reshape(-1, MX_BLOCK // NV_BLOCK).amax(dim=-1)
    exponent = torch.frexp(top).exponent - 3  # frexp's mantissa begins at one half
    return torch.ldexp(torch.ones_like(top), exponent).repeat_interleave(MX_BLOCK // NV_BLOCK)[:, None]


def _nvfp4(blocks: Tensor, peak: Tensor) -> Tensor:
    unit = torch.where(peak > 0, peak, 1.0) / (E2M1_MAX * E4M3_MAX)
    return e4m3(_top(blocks) / E2M1_MAX / unit) * unit


def _ue5m3(x: Tensor) -> Tensor:
    """The nearest number of 5 bits of exponent and 3 of mantissa, without a sign; ties go to the even mantissa."""
    _, exponent = torch.frexp(x.clamp(UE5M3_TINY, UE5M3_MAX))
    step = torch.ldexp(torch.ones_like(x), exponent - 4)
    return ((x / step).round() * step).clamp(max=UE5M3_MAX)


def _fp8(x: Tensor, peak: Tensor, kind: torch.dtype, largest: float) -> Tensor:
    scale = largest / torch.where(peak > 0, peak, 1.0)
    return (x * scale).clamp(-largest, largest).to(kind).float() / scale


def _int8(x: Tensor, peak: Tensor) -> Tensor:
    scale = torch.where(peak > 0, peak, 1.0) / 127
    return (x / scale).round().clamp(-127, 127) * scale


def _step(size: Tensor) -> Tensor:
    """Distance of the numbers of e2m1 around the absolute value of each, at most 6: 0.5; 1 from 2 on, and 2 from 4 on.

    It is half the power of two below, which is what the bits show without those of the mantissa.
    """
    return (size.view(torch.int32) & EXPONENT).view(torch.float32).mul_(0.5).clamp_(min=0.5)


def _e2m1(x: Tensor) -> Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with the sign; ties go to the even mantissa."""
    size = x.abs().clamp_(max=E2M1_MAX)
    step = _step(size)
    return torch.copysign(size.div_(step).round_().mul_(step), x)


def _variance(x: Tensor) -> Tensor:
    """Expected squared error where a number goes to the one of e2m1 below or above, on average to itself."""
    size = x.abs()
    inside = size.clamp(max=E2M1_MAX)
    step = _step(inside)
    above = inside - (inside / step).floor_().mul_(step)
    return above.mul_(step - above).add_((size - inside).square_())  # the number 6 itself is no distance above a step


def _hif4(blocks: Tensor) -> Tensor:
    """Blocks of 64 numbers under an e6m2 scale, of 8 and of 4 that may double it, s1p2 each: the published reference.

    HiFloat4 (Huawei), as its code does it: the scale's reciprocal is rounded to bfloat16, ties go away from zero.
    """
    size = blocks.abs().unflatten(-1, (8, 2, 4))
    four = size.amax(dim=-1, keepdim=True)
    eight = four.amax(dim=-2, keepdim=True)
    top = eight.amax(dim=-3, keepdim=True)
    seventh = torch.full_like(top, 1 / HI_LARGEST).bfloat16().float()
    mantissa, exponent = torch.frexp((top * seventh).bfloat16().float().clamp(*HI_SCALES))
    scale = torch.ldexp((mantissa * 8).round() / 8, exponent)
    inverse = (1 / scale).bfloat16().float()
    second = 1.0 + (eight * inverse >= 4)
    third = 1.0 + (four * inverse / second >= 2)
    unit = second * third
    rounded = ((size * inverse / unit * 4 + 0.5).floor() / 4).clamp(max=1.75) * unit * scale
    return torch.copysign(rounded.flatten(-3), blocks)


def _rotated(blocks: Tensor) -> Tensor:
    """In float32, whatever the loop's autocast makes of products."""
    with torch.autocast(blocks.device.type, enabled=False):
        return blocks @ _rotation(blocks.device)


def _rotation(device: torch.device) -> Tensor:
    """Orthogonal, float32 (16, 16): random signs, then Hadamard's matrix."""
    return device_constant(ROTATION, torch.float32, device).view(16, 16)
