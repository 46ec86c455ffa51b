"""The definition: a round trip through each format, in float64 and torch's narrow types."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)


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
    """x (N, D), finite -> float64 (6,): count, sum of squares, sums of squared errors of the four narrow formats."""
    x = x.detach().double()
    rounded = []
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        scale = torch.finfo(kind).max / x.abs().max()
        rounded.append((x * scale).float().to(kind).double() / scale)
    rounded.append(_in_blocks(x, 32, _power_of_two, back=True))
    rounded.append(_in_blocks(x, 16, _e4m3_scale(x.abs().max()), back=True))
    return torch.stack(
        (torch.tensor(float(x.numel())).double(), x.square().sum(), *((r - x).square().sum() for r in rounded))
    )


def _lost(x: Tensor, rounded: Tensor) -> Tensor:
    return ((x != 0) & (rounded == 0)).sum()


def _in_blocks(x: Tensor, size: int, scale_of: Callable[[Tensor], float], back: bool = False) -> Tensor:
    """back: multiply with the scale again."""
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        for start in range(0, len(row), size):
            block = row[start : start + size]
            scale = scale_of(block.abs().max())
            out[i, start : start + size] = _e2m1(block / scale) * (scale if back else 1.0) if scale > 0 else 0.0
    return out


def _e2m1(x: Tensor) -> Tensor:
    distance = (x.abs().clamp(max=6.0)[:, None] - _E2M1).abs()
    near = distance.min(dim=1).values
    odd = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])  # mantissa bits: a tie goes to the even one
    return torch.sign(x) * _E2M1[torch.where(distance == near[:, None], odd, 2).argmin(dim=1)]


def _power_of_two(peak: Tensor) -> float:
    """e8m0: 2 to the (exponent of the block's maximum minus that of 6, the largest e2m1)."""
    return 2.0 ** (torch.floor(torch.log2(peak)).item() - 2) if peak > 0 else 0.0


def _e4m3_scale(tensor_peak: Tensor) -> Callable[[Tensor], float]:
    """NVFP4: the block's maximum over 6 in e4m3, which a float32 of the whole tensor scales."""
    outer = (tensor_peak / (6.0 * 448.0)).item()

    def scale(peak: Tensor) -> float:
        return float((peak / 6.0 / outer).float().to(torch.float8_e4m3fn).double()) * outer if outer else 0.0

    return scale
