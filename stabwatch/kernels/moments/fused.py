"""Triton: one read of the tensor, in memory order.

A program reduces `tiles` tiles: lanes add at most MOST_TILES numbers in float32, then a tree adds the lanes. The
partial aggregates of all programs are added in float64. So rounding does not grow with the length of the tensor.

No element is tested at first: if the sum of squares of a program is finite, all its elements are. Otherwise the
program reads them again and tests each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stabwatch.kernels.launch import dense, jit, on, programs, update

BLOCK = 2048
MOST_TILES = 64
FIELDS, FULL_FIELDS = 4, 7


def moments(x: Tensor, into: Tensor | None = None) -> Tensor:
    """float32 (4,): count, sum of squares, non-finite count, absolute maximum; merged into `into`, if given."""
    return _reduced(x, into, full=False)


def moments_full(x: Tensor) -> Tensor:
    """float32 (7,): count, sum, sum of squares, sum of fourth powers, zeros, non-finite count, absolute maximum."""
    return _reduced(x, None, full=True)


def tiles_of(n: int, device: torch.device) -> int:
    """Tiles per program, such that `n` elements fill the device and there are few programs."""
    return max(1, min(MOST_TILES, n // (BLOCK * programs(device))))


def _reduced(x: Tensor, into: Tensor | None, full: bool) -> Tensor:
    x = dense(x.detach())
    n = x.numel()
    tiles = tiles_of(n, x.device)
    count = max(1, triton.cdiv(n, BLOCK * tiles))
    fields = FULL_FIELDS if full else FIELDS
    aggregates = torch.empty((fields, count), dtype=torch.float32, device=x.device)
    out = torch.empty(fields, dtype=torch.float32, device=x.device) if into is None else into
    with on(x.device):
        _aggregates[(count,)](x, aggregates, n, tiles, count, FULL=full, BLOCK=BLOCK, num_warps=8)
    update(aggregates, out.view(1, fields), sums=fields - 1, merge=into is not None)
    return out


@jit
def _aggregates(
    x: tl.tensor,
    aggregates: tl.tensor,
    n: tl.tensor,
    tiles: tl.tensor,
    count: tl.tensor,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    reduce_chunk(x, n, program * tiles * BLOCK, tiles, aggregates + program, count, FULL, BLOCK)


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
    """Write the partial aggregates of x[start : start + tiles * BLOCK], cut at n, to out[0], out[stride], ..."""
    held = tl.maximum(tl.minimum(n - start, tiles * BLOCK), 0)
    first, second, fourth, zeros, broken, peak = _pass(x, n, start, held, False, FULL, BLOCK)
    if not second < float("inf"):
        first, second, fourth, zeros, broken, peak = _pass(x, n, start, held, True, FULL, BLOCK)
    tl.store(out, held.to(tl.float32))
    if FULL:
        tl.store(out + stride, first)
        tl.store(out + 2 * stride, second)
        tl.store(out + 3 * stride, fourth)
        tl.store(out + 4 * stride, zeros)
        tl.store(out + 5 * stride, broken)
        tl.store(out + 6 * stride, peak)
    else:
        tl.store(out + stride, second)
        tl.store(out + 2 * stride, broken)
        tl.store(out + 3 * stride, peak)


@jit
def _pass(
    x: tl.tensor,
    n: tl.tensor,
    start: tl.tensor,
    held: tl.tensor,
    CAREFUL: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    lanes = tl.arange(0, BLOCK)
    nothing = tl.full((BLOCK,), 0.0, tl.float32)
    first, second, fourth, zeros, broken, peak = nothing, nothing, nothing, nothing, nothing, nothing
    whole = held // BLOCK
    for tile in range(whole):  # without a mask, so that loads are 16 bytes wide for any n
        value = tl.load(x + start + tile * BLOCK + lanes).to(tl.float32)
        zero = value == 0.0
        first, second, fourth, zeros, broken, peak = _add(
            value, zero, first, second, fourth, zeros, broken, peak, CAREFUL, FULL
        )
    if whole * BLOCK < held:
        at = start + whole * BLOCK + lanes
        value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
        zero = (value == 0.0) & (at < n)
        first, second, fourth, zeros, broken, peak = _add(
            value, zero, first, second, fourth, zeros, broken, peak, CAREFUL, FULL
        )
    return tl.sum(first), tl.sum(second), tl.sum(fourth), tl.sum(zeros), tl.sum(broken), tl.max(peak)


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
    CAREFUL: tl.constexpr,
    FULL: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    if CAREFUL:
        finite = tl.abs(value) < float("inf")
        value = tl.where(finite, value, 0.0)
        broken += tl.where(finite, 0.0, 1.0)
    square = value * value
    second += square
    peak = tl.maximum(peak, tl.abs(value))
    if FULL:
        first += value
        fourth += square * square
        zeros += tl.where(zero, 1.0, 0.0)
    return first, second, fourth, zeros, broken, peak
