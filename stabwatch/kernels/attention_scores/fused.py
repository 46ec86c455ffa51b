"""Triton: online softmax over the keys, a block of query rows in each program; the scores never reach memory.

Each row carries its maximum m, l = sum exp(s - m) and u = sum exp(s - m) (s - m). The entropy is then log l - u / l:
without the difference of two large numbers that log-sum-exp less mean score would be when logits are large.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stabwatch.kernels.launch import INTERPRETED, fold, jit, on

FIELDS, SUMS = 7, 5
NO_MASK, BOOL_MASK, ADDITIVE_MASK = 0, 1, 2


def largest_logit(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """Rows, non-finite rows, the largest logit, its head: float32 (4,)."""
    found = score_statistics(query, key, mask, is_causal, scale)
    logit, head = found[:, SUMS].max(dim=0)
    b, h, t, _ = query.shape
    return torch.stack((torch.full_like(logit, float(b * h * t)), found[:, 1].sum(), logit, head.float()))


def score_statistics(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
    stride: int = 1,
) -> Tensor:
    """Statistics of each head's rows, float32 (H, 7); see `stabwatch.kernels.attention_scores`."""
    q, k = query.detach(), key.detach()
    if q.dtype != k.dtype or not _multiplies(q.dtype):
        q, k = q.float(), k.float()
    b, h, t, d = q.shape
    s = k.shape[2]
    kind = NO_MASK if mask is None else BOOL_MASK if mask.dtype == torch.bool else ADDITIVE_MASK
    m = q if mask is None else mask.detach().expand(b, h, t, s)
    if kind == BOOL_MASK:
        m = m.view(torch.uint8)
    width = max(16, triton.next_power_of_2(d))
    block = _block(width, q.element_size())
    blocks = triton.cdiv(triton.cdiv(t, stride), block)
    partials = torch.empty((h, FIELDS, b * blocks), dtype=torch.float32, device=q.device)
    out = torch.empty((h, FIELDS), dtype=torch.float32, device=q.device)
    with on(q.device):
        _statistics[(b * h * blocks,)](
            q, k, m, partials, h, h // k.shape[1], t, s, d, blocks, b * blocks, stride,
            d**-0.5 if scale is None else float(scale), float(softcap or 0.0), window or 0,
            *q.stride(), *k.stride(), *m.stride(),
            CAUSAL=is_causal, WINDOW=window is not None, SOFTCAP=softcap is not None, MASK=kind,
            BLOCK_T=block, BLOCK_S=block, BLOCK_D=width, num_stages=2,
        )  # fmt: skip
    fold(partials, out, sums=SUMS)
    return out


def _multiplies(kind: torch.dtype) -> bool:
    """Is there a matrix product? Triton's interpreter takes the bits of bfloat16 for integers."""
    return kind in (torch.float32, torch.float16) or (kind == torch.bfloat16 and not INTERPRETED)


def _block(width: int, size: int) -> int:
    """Rows in a tile, so that tiles of queries and keys fit the registers and the shared memory."""
    if size == 2 and width <= 128:
        return 64
    return 32 if width * size <= 1024 else 16


@jit
def _statistics(
    q: tl.tensor,
    k: tl.tensor,
    mask: tl.tensor,
    partials: tl.tensor,
    heads: tl.tensor,
    shared: tl.tensor,
    t_end: tl.tensor,
    s_end: tl.tensor,
    d_end: tl.tensor,
    blocks: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    q_b: tl.tensor,
    q_h: tl.tensor,
    q_t: tl.tensor,
    q_d: tl.tensor,
    k_b: tl.tensor,
    k_h: tl.tensor,
    k_s: tl.tensor,
    k_d: tl.tensor,
    mask_b: tl.tensor,
    mask_h: tl.tensor,
    mask_t: tl.tensor,
    mask_s: tl.tensor,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    head = program // blocks % heads
    sample = program // blocks // heads
    t = (block * BLOCK_T + tl.arange(0, BLOCK_T)) * stride
    d = tl.arange(0, BLOCK_D)
    queries = tl.load(
        q + sample * q_b + head * q_h + t[:, None] * q_t + d[None, :] * q_d,
        mask=(t[:, None] < t_end) & (d[None, :] < d_end),
        other=0.0,
    )  # (BLOCK_T, BLOCK_D)
    keys_of = k + sample * k_b + head // shared * k_h
    mask_of = mask + sample * mask_b + head * mask_h + t[:, None] * mask_t
    start = tl.full((), 0, tl.int64)
    stop = start + s_end
    if CAUSAL:
        stop = tl.minimum(stop, (block * BLOCK_T + BLOCK_T - 1) * stride + 1)
    if WINDOW:
        start = tl.maximum(block * BLOCK_T * stride - window + 1, 0) // BLOCK_S * BLOCK_S
    peak = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_T,), 0.0, tl.float32)
    moment = tl.full((BLOCK_T,), 0.0, tl.float32)
    broken = tl.full((BLOCK_T,), 0, tl.int32)
    for first in range(start, stop, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        keys = tl.load(
            keys_of + s[None, :] * k_s + d[:, None] * k_d, mask=(s[None, :] < s_end) & (d[:, None] < d_end), other=0.0
        )  # (BLOCK_D, BLOCK_S)
        logits = tl.dot(queries, keys, input_precision="ieee") * scale
        if SOFTCAP:
            logits = softcap * (1.0 - 2.0 / (tl.exp(2.0 * logits / softcap) + 1.0))  # tanh
        visible = (t[:, None] < t_end) & (s[None, :] < s_end)
        if CAUSAL:
            visible = visible & (s[None, :] <= t[:, None])
        if WINDOW:
            visible = visible & (t[:, None] - s[None, :] < window)
        if MASK == 1:
            visible = visible & (tl.load(mask_of + s[None, :] * mask_s, mask=visible, other=0) != 0)
        if MASK == 2:
            logits += tl.load(mask_of + s[None, :] * mask_s, mask=visible, other=0.0).to(tl.float32)
        bounded = logits < float("inf")  # not so for NaN
        broken = tl.maximum(broken, tl.max((visible & (bounded == 0)).to(tl.int32), axis=1))
        logits = tl.where(visible & bounded, logits, float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        rescale = tl.exp(peak - base)
        away = logits - base[:, None]
        weights = tl.exp(away)
        moved = tl.where(total > 0.0, peak - base, 0.0)
        moment = rescale * (moment + total * moved) + tl.sum(weights * tl.where(weights > 0.0, away, 0.0), axis=1)
        total = rescale * total + tl.sum(weights, axis=1)
        peak = higher
    whole = (broken == 0) & (total > 0.0)
    length = tl.where(whole, total, 1.0)
    lse = tl.where(whole, peak + tl.log(length), 0.0)
    entropy = tl.where(whole, tl.log(length) - moment / length, 0.0)
    out = partials + head * 7 * columns + sample * blocks + block
    tl.store(out, tl.sum((whole | (broken > 0)).to(tl.float32), axis=0))
    tl.store(out + columns, tl.sum(broken.to(tl.float32), axis=0))
    tl.store(out + 2 * columns, tl.sum(lse, axis=0))
    tl.store(out + 3 * columns, tl.sum(lse * lse, axis=0))
    tl.store(out + 4 * columns, tl.sum(entropy, axis=0))
    tl.store(out + 5 * columns, tl.max(tl.where(whole, peak, float("-inf")), axis=0))
    tl.store(out + 6 * columns, tl.max(tl.where(whole, 1.0 / length, float("-inf")), axis=0))
