"""Triton: one read of tiles of tokens x features, of any stride. The sums of spans of tokens are added afterwards."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stabwatch.kernels.launch import jit, on, programs

TOKENS, FEATURES = 32, 64
MOST_TILES = 32
"""Tiles that one program adds up in float32, in each lane."""


def column_sums(x: Tensor) -> Tensor:
    """x (B, T, D) -> float32 (B, D), the sum over T."""
    x = x.detach()
    b, t, d = x.shape
    across = triton.cdiv(d, FEATURES)
    tiles = max(1, min(MOST_TILES, b * t * across // (TOKENS * programs(x.device))))
    spans = max(1, triton.cdiv(t, TOKENS * tiles))
    aggregates = torch.empty((b, spans, d), dtype=torch.float32, device=x.device)
    if aggregates.numel():
        with on(x.device):
            _sums[(b * spans * across,)](
                x, aggregates, t, d, tiles, spans, across, *x.stride(), TOKENS=TOKENS, FEATURES=FEATURES
            )
    return aggregates[:, 0] if spans == 1 else aggregates.sum(dim=1)


@jit
def _sums(
    x: tl.tensor,
    aggregates: tl.tensor,
    t: tl.tensor,
    d: tl.tensor,
    tiles: tl.tensor,
    spans: tl.tensor,
    across: tl.tensor,
    stride_b: tl.tensor,
    stride_t: tl.tensor,
    stride_d: tl.tensor,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    feature = program % across * FEATURES + tl.arange(0, FEATURES)
    row = program // across  # sample and span
    source = x + row // spans * stride_b + feature[None, :] * stride_d
    start = row % spans * tiles * TOKENS
    total = tl.full((TOKENS, FEATURES), 0.0, tl.float32)
    for tile in range(tiles):
        token = start + tile * TOKENS + tl.arange(0, TOKENS)[:, None]
        total += tl.load(source + token * stride_t, mask=(token < t) & (feature[None, :] < d), other=0.0).to(tl.float32)
    tl.store(aggregates + row * d + feature, tl.sum(total, axis=0), mask=feature < d)
