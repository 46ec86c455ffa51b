"""The definition: a round trip through each format, in float64 and torch's narrow types."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stabwatch.kernels.precision.rounding import SIGNS

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
_UE5M3 = torch.tensor(
    [m * 2.0**-17 for m in range(8)] + [(8 + m) * 2.0 ** (e - 18) for e in range(1, 32) for m in range(8)][:-1],
    dtype=torch.float64,
)


def precision(x: Tensor) -> Tensor:
    """x (N, D) -> float64 (8,): count, zeros, fp16 lost, fp16 saturated, lost in e4m3, e5m2, MXFP4, NVFP4."""
    x = x.detach().double()
    half = x.half().double()
    lost = [_lost(x, half), torch.isinf(half).sum()]
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        scale = torch.finfo(kind).max / x.abs().max()
        lost.append(_lost(x, (x * scale).float().to(kind).double()))
    lost.append(_lost(x, _in_blocks(x, 32, _power_of_two)))
    lost.append(_lost(x, _in_blocks(x, 16, _e4m3_scale(x.abs().max()))))
    return torch.stack((torch.tensor(float(x.numel())), (x == 0).sum(), *lost)).double()


def rounding(x: Tensor) -> Tensor:
    """x (N, D), finite -> float64 (14,): count, sum of squares, sums of squared errors of narrow formats."""
    x = x.detach().double()
    peak = x.abs().max()
    turned = _turned(x)
    tensor_scale, of_turned = _e4m3_scale(peak), _e4m3_scale(turned.abs().max())
    stochastic = [_in_blocks(x, size, scale, _variance) for size, scale in ((32, _power_of_two), (16, tensor_scale))]
    errors = [_through(x, kind) - x for kind in (torch.float8_e4m3fn, torch.float8_e5m2)]
    errors.append(torch.fake_quantize_per_tensor_affine(x, float(peak) / 127, 0, -127, 127) - x)
    errors += [_in_blocks(x, 32, _power_of_two, _back) - x, _in_blocks(x, 16, tensor_scale, _back) - x, _hif4(x) - x]
    errors.append(_in_blocks(x, 16, _ue5m3_scale, _back) - x)
    errors.append(_in_blocks(turned, 32, _power_of_two, _back) - turned)
    errors.append(_in_blocks(turned, 16, of_turned, _back) - turned)
    errors.append(_in_blocks(x, 16, lambda top: float((top / 6).float().to(torch.float8_e4m3fn)), _back) - x)
    counts = (torch.tensor(float(x.numel())).double(), x.square().sum())
    return torch.stack((*counts, *(e.square().sum() for e in errors), *(s.sum() for s in stochastic)))


def _through(x: Tensor, kind: torch.dtype) -> Tensor:
    scale = torch.finfo(kind).max / x.abs().max()
    return (x * scale).float().to(kind).double() / scale


def _lost(x: Tensor, rounded: Tensor) -> Tensor:
    return ((x != 0) & (rounded == 0)).sum()


def _in_blocks(
    x: Tensor,
    size: int,
    scale_of: Callable[[Tensor], float],
    of_block: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """of_block: what becomes of numbers under the scales of their blocks; by default their numbers of e2m1."""
    peaks = torch.nn.functional.pad(x.abs(), (0, -x.shape[1] % size)).unflatten(1, (-1, size)).amax(-1)
    of_blocks = torch.tensor([[scale_of(peak) for peak in row] for row in peaks], dtype=torch.float64)
    scales = of_blocks.repeat_interleave(size, 1)[:, : x.shape[1]]
    if of_block is not None:
        return of_block(x, scales)
    return torch.where(scales > 0, _e2m1(x / scales), 0.0)


def _back(x: Tensor, scales: Tensor) -> Tensor:
    return torch.where(scales > 0, _e2m1(x / scales) * scales, 0.0)


def _variance(x: Tensor, scales: Tensor) -> Tensor:
    return torch.where(scales > 0, _spread(x / scales) * scales**2, x**2)


def _turned(x: Tensor) -> Tensor:
    """Each 16 numbers of a row, the last ones filled up with zeros, times signs and Hadamard's matrix by doubling."""
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(4):
        hadamard = torch.cat((torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)))
    rows = torch.nn.functional.pad(x, (0, -x.shape[1] % 16)).unflatten(1, (-1, 16)) * torch.tensor(SIGNS)
    return (rows @ hadamard / 4).flatten(1)


def _spread(x: Tensor) -> Tensor:
    """Variance of a number that becomes one of its two neighbours in e2m1; above 6 the squared distance to it."""
    x = x.abs()
    index = (x[..., None] >= _E2M1).sum(-1) - 1
    low, high = _E2M1[index], _E2M1[(index + 1).clamp(max=7)]
    p = torch.where(index < 7, (x - low) / (high - low), 0.0)
    return (1 - p) * (x - low) ** 2 + p * (high - x) ** 2


def _ue5m3_scale(peak: Tensor) -> float:
    """The block's maximum over 6 in the table of all 255 numbers of UE5M3."""
    distance = (_UE5M3 - peak / 6).abs()
    nearest: list[int] = (distance == distance.min()).nonzero().flatten().tolist()
    return _UE5M3[min(nearest, key=lambda i: i % 2)].item()


def _hif4(x: Tensor) -> Tensor:
    """HiFloat4, step by step: 1P2 numbers under 2 to the two exponents of their 8 and their 4, and an e6m2 scale."""
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        for start in range(0, len(row), 64):
            block = row[start : start + 64].tolist()
            out[i, start : start + 64] = torch.tensor(_hif4_block(block), dtype=torch.float64)
    return out


def _hif4_block(block: list[float]) -> list[float]:
    raw = _bf16(max(map(abs, block)) * _bf16(1 / 7))
    raw = min(max(raw, 2.0**-48), 2.0**15 * 1.5)
    exponent = math.floor(math.log2(raw))
    scale = round(raw * 2.0 ** (2 - exponent)) * 2.0 ** (exponent - 2)
    inverse = _bf16(1 / scale)
    eights, fours = ([max(map(abs, block[j : j + k])) * inverse for j in range(0, len(block), k)] for k in (8, 4))
    out = []
    for j, number in enumerate(block):
        unit = 2.0 if eights[j // 8] >= 4 else 1.0
        unit *= 2.0 if fours[j // 4] / unit >= 2 else 1.0
        whole = min(math.floor(abs(number) * inverse / unit * 4 + 0.5) / 4, 1.75)
        out.append(math.copysign(whole * unit * scale, number))
    return out


def _bf16(number: float) -> float:
    return torch.tensor(number, dtype=torch.float64).bfloat16().item()


def _e2m1(x: Tensor) -> Tensor:
    distance = (x.abs().clamp(max=6.0)[..., None] - _E2M1).abs()
    near = distance.min(dim=-1, keepdim=True).values
    odd = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])  # mantissa bits: a tie goes to the even one
    return torch.sign(x) * _E2M1[torch.where(distance == near, odd, 2).argmin(dim=-1)]


def _power_of_two(peak: Tensor) -> float:
    """e8m0: 2 to the (exponent of the block's maximum minus that of 6, the largest e2m1)."""
    return 2.0 ** (torch.floor(torch.log2(peak)).item() - 2) if peak > 0 else 0.0


def _e4m3_scale(tensor_peak: Tensor) -> Callable[[Tensor], float]:
    """NVFP4: the block's maximum over 6 in e4m3, which a float32 of the whole tensor scales."""
    outer = (tensor_peak / (6.0 * 448.0)).item()

    def scale(peak: Tensor) -> float:
        return float((peak / 6.0 / outer).float().to(torch.float8_e4m3fn).double()) * outer if outer else 0.0

    return scale
