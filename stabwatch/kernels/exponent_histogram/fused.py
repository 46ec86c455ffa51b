"""Triton: one read; each program counts its tiles into a separate histogram."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stabwatch.kernels.exponent_histogram.bins import BIAS, BINS, HIGH, LOW
from stabwatch.kernels.launch import dense, jit, on, update
from stabwatch.kernels.moments.fused import BLOCK, tiles_of

ROOM = 128
"""Bins rounded up to a power of two; the last bin counts lanes beyond the end of the tensor."""


def exponent_histogram(x: Tensor) -> Tensor:
    """float32 (BINS,) counts: zero, exponents LOW to HIGH, not finite."""
    x = dense(x.detach())
    n = x.numel()
    tiles = tiles_of(n, x.device)
    count = max(1, triton.cdiv(n, BLOCK * tiles))
    aggregates = torch.empty((BINS, count), dtype=torch.float32, device=x.device)
    out = torch.empty((1, BINS), dtype=torch.float32, device=x.device)
    with on(x.device):
        _counts[(count,)](
            x, aggregates, n, tiles, count, BINS=BINS, LOW=LOW, HIGH=HIGH, BIAS=BIAS, ROOM=ROOM, BLOCK=BLOCK
        )
    update(aggregates, out, sums=BINS)
    return out[0]


@jit
def _counts(
    x: tl.tensor,
    aggregates: tl.tensor,
    n: tl.tensor,
    tiles: tl.tensor,
    count: tl.tensor,
    BINS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BIAS: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    counts = tl.full((ROOM,), 0, tl.int32)
    for tile in range(tiles):
        at = (program * tiles + tile) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
        bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        field = bits >> 23
        exponent = tl.minimum(tl.maximum(field - BIAS, LOW), HIGH) + (1 - LOW)
        where = tl.where(bits == 0, 0, tl.where(field == 255, BINS - 1, exponent))
        counts += tl.histogram(tl.where(at < n, where, ROOM - 1), ROOM)
    bins = tl.arange(0, ROOM)
    tl.store(aggregates + bins * count + program, counts.to(tl.float32), mask=bins < BINS)
