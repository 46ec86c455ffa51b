"""Triton: one read of the tensor, in the order in which it lies in memory.

A program reduces `tiles` tiles: lanes add at most MOST_TILES numbers in float32, then a tree adds the lanes; the
partials of all programs are folded in float64. So the rounding does not grow with the length of the tensor.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stabwatch.kernels.launch import dense, fold, jit, on, programs

BLOCK = 2048
MOST_TILES = 32
FIELDS, FULL_FIELDS = 4, 7


def moments(x: Tensor) -> Tensor:
    """float32 (4,): count, sum of squares, non-finite count, absolute maximum."""
    return _reduced(x, full=False)


def moments_full(x: Tensor) -> Tensor:
    """float32 (7,): count, sum, sum of squares, sum of fourth powers, zeros, non-finite count, absolute maximum."""
    return _reduced(x, full=True)


def tiles_of(n: int, device: torch.device) -> int:
    """Tiles that one program reduces, so that `n` elements fill the device and partials stay few."""
    return max(1, min(MOST_TILES, n // (BLOCK * programs(device))))


def _reduced(x: Tensor, full: bool) -> Tensor:
    x = dense(x.detach())
    n = x.numel()
    tiles = tiles_of(n, x.device)
    count = max(1, triton.cdiv(n, BLOCK * tiles))
    fields = FULL_FIELDS if full else FIELDS
    partials = torch.empty((fields, count), dtype=torch.float32, device=x.device)
    out = torch.empty((1, fields), dtype=torch.float32, device=x.device)
    with on(x.device):
        _partials[(count,)](x, partials, n, tiles, count, FULL=full, BLOCK=BLOCK, num_warps=8)
    fold(partials, out, sums=fields - 1)
    return out[0]


@jit
def _partials(
    x: tl.tensor,
    partials: tl.tensor,
    n: tl.tensor,
    tiles: tl.tensor,
    count: tl.tensor,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    reduce_chunk(x, n, program * tiles * BLOCK, tiles, partials + program, count, FULL, BLOCK)


@jit
def reduce_chunk(
    x: tl.tensor,
    n: tl.tensor,
    start: tl.tensor,
    tiles: tl.tensor,
    out: tl.tensor,
    stride: tl.tensor,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Partials of x[start : start + tiles * BLOCK], cut at n, to out[0], out[stride], ..."""
    lanes = tl.arange(0, BLOCK)
    nothing = tl.full((BLOCK,), 0.0, tl.float32)
    first, second, fourth, zeros, broken, peak = nothing, nothing, nothing, nothing, nothing, nothing
    held = tl.maximum(tl.minimum(n - start, tiles * BLOCK), 0)
    whole = held // BLOCK
    for tile in range(whole):  # without a mask, so that loads are 16 bytes wide whatever n is
        value = tl.load(x + start + tile * BLOCK + lanes).to(tl.float32)
        first, second, fourth, zeros, broken, peak = _add(
            value, value == 0.0, first, second, fourth, zeros, broken, peak, FULL
        )
    if whole * BLOCK < held:
        at = start + whole * BLOCK + lanes
        value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
        first, second, fourth, zeros, broken, peak = _add(
            value, (value == 0.0) & (at < n), first, second, fourth, zeros, broken, peak, FULL
        )
    tl.store(out, held.to(tl.float32))
    if FULL:
        tl.store(out + stride, tl.sum(first, axis=0))
        tl.store(out + 2 * stride, tl.sum(second, axis=0))
        tl.store(out + 3 * stride, tl.sum(fourth, axis=0))
        tl.store(out + 4 * stride, tl.sum(zeros, axis=0))
        tl.store(out + 5 * stride, tl.sum(broken, axis=0))
        tl.store(out + 6 * stride, tl.max(peak, axis=0))
    else:
        tl.store(out + stride, tl.sum(second, axis=0))
        tl.store(out + 2 * stride, tl.sum(broken, axis=0))
        tl.store(out + 3 * stride, tl.max(peak, axis=0))


@jit
def _add(
    value: tl.tensor,
    zero: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    fourth: tl.tensor,
    zeros: tl.tensor,
    broken: tl.tensor,
    peak: tl.tensor,
    FULL: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    finite = tl.abs(value) < float("inf")
    value = tl.where(finite, value, 0.0)
    square = value * value
    second += square
    broken += tl.where(finite, 0.0, 1.0)
    peak = tl.maximum(peak, tl.abs(value))
    if FULL:
        first += value
        fourth += square * square
        zeros += tl.where(zero, 1.0, 0.0)
    return first, second, fourth, zeros, broken, peak
