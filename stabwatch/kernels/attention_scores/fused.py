"""Triton: a block of query rows in each program, over tiles of keys; the scores never reach memory.

`largest_logit` keeps the largest score at each position of a tile. `score_statistics` is an online softmax: each row
carries its maximum m, l = sum exp(s - m) and u = sum exp(s - m) (s - m). The entropy is log l - u / l. The alternative,
log-sum-exp minus mean score, would be the difference of two large numbers when logits are large.

Tiles that every row of the block sees completely come first, without a mask. A score that is NaN or +inf makes l NaN,
so no score is tested separately.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stabwatch.kernels.launch import INTERPRETED, jit, on, update

FIELDS, SUMS = 7, 5
NO_MASK, BOOL_MASK, ADDITIVE_MASK = 0, 1, 2
LEAST_SCALE = 1e-18
"""A scale below this multiplies each score; a larger scale multiplies the result, once."""
LOG2_E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(-3e38)


class Tiles(NamedTuple):
    """Query rows and keys of a tile, and how the kernel is compiled."""

    rows: int
    keys: int
    warps: int
    stages: int


def largest_logit(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, into: Tensor | None = None
) -> Tensor:
    """Rows, non-finite rows, the largest logit, its head: float32 (4,); merged into `into`, if given."""
    aggregates = _launched(query, key, mask, is_causal, scale, full=False)
    h, _, columns = aggregates.shape
    out = torch.empty(4, dtype=torch.float32, device=query.device) if into is None else into
    with on(query.device):
        _largest[(1,)](
            aggregates, out, h, columns, query.shape[0] * h * query.shape[2], MERGE=into is not None,
            HEADS=triton.next_power_of_2(h), BLOCK=max(16, 4096 // triton.next_power_of_2(h)), num_warps=8,
        )  # fmt: skip
    return out


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
    aggregates = _launched(query, key, mask, is_causal, scale, window, softcap, stride)
    out = torch.empty((len(aggregates), FIELDS), dtype=torch.float32, device=query.device)
    update(aggregates, out, sums=SUMS)
    return out


def _launched(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
    stride: int = 1,
    full: bool = True,
) -> Tensor:
    """float32 (H, 7, programs); if not full, (H, 2, programs): non-finite rows, largest logit of the other rows."""
    q, k = query.detach(), key.detach()
    if q.dtype != k.dtype or not _multiplies(q.dtype):
        q, k = q.float(), k.float()
    b, h, t, d = q.shape
    s = k.shape[2]
    kind = NO_MASK if mask is None else BOOL_MASK if mask.dtype == torch.bool else ADDITIVE_MASK
    m = q if mask is None else mask.detach().expand(b, h, t, s)
    if kind == BOOL_MASK:
        m = m.view(torch.uint8)
    factor = d**-0.5 if scale is None else float(scale)
    width = max(16, triton.next_power_of_2(d))
    tiles = tiles_of(width, q.element_size())
    blocks = triton.cdiv(triton.cdiv(t, stride), tiles.rows)
    aggregates = torch.empty((h, FIELDS if full else 2, b * blocks), dtype=torch.float32, device=q.device)
    with on(q.device):
        _statistics[(b * h * blocks,)](
            q, k, m, aggregates, h, h // k.shape[1], t, s, d, blocks, b * blocks, stride,
            factor, float(softcap or 0.0), window or 0, *q.stride(), *k.stride(), *m.stride(),
            FULL=full, CAUSAL=is_causal, WINDOW=window is not None, SOFTCAP=softcap is not None, MASK=kind,
            SCALED=softcap is not None or kind == ADDITIVE_MASK or factor < LEAST_SCALE, WHOLE=width == d,
            BLOCK_T=tiles.rows, BLOCK_S=tiles.keys, BLOCK_D=width, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return aggregates


def _multiplies(kind: torch.dtype) -> bool:
    """Whether a matrix product works. Triton's interpreter treats the bits of bfloat16 as integers."""
    return kind in (torch.float32, torch.float16) or (kind == torch.bfloat16 and not INTERPRETED)


def tiles_of(width: int, size: int) -> Tiles:
    """Tiles that fit the registers and the shared memory. width: of a head. size: bytes per element."""
    if size == 2 and width <= 128:
        return Tiles(128, 64, 8, 4)
    rows = 32 if width * size <= 1024 else 16
    return Tiles(rows, rows, 4, 2)


@jit
def _statistics(
    q: tl.tensor,
    k: tl.tensor,
    mask: tl.tensor,
    aggregates: tl.tensor,
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
    FULL: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK: tl.constexpr,
    SCALED: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    block = blocks - 1 - program % blocks  # under a causal mask the last blocks have the most work, so they start first
    head = (program // blocks % heads).to(tl.int64)
    sample = (program // blocks // heads).to(tl.int64)
    t_first = block * BLOCK_T * stride
    t = t_first + tl.arange(0, BLOCK_T) * stride
    d = tl.arange(0, BLOCK_D)
    lanes = tl.arange(0, BLOCK_S)
    row_offset = t.to(tl.int64)[:, None]
    queries = tl.load(
        q + sample * q_b + head * q_h + row_offset * q_t + d[None, :] * q_d,
        mask=(t[:, None] < t_end) & (d[None, :] < d_end),
        other=0.0,
    )  # (BLOCK_T, BLOCK_D)
    start = t_first * 0
    stop = start + s_end
    if CAUSAL:
        stop = tl.minimum(stop, t_first + (BLOCK_T - 1) * stride + 1)
    if WINDOW:
        start = tl.maximum(t_first - window + 1, 0) // BLOCK_S * BLOCK_S
    middle = start  # up to here every row of the block sees every key
    if MASK == 0 and not WINDOW:
        middle = stop // BLOCK_S * BLOCK_S
        if CAUSAL:
            middle = tl.minimum(middle, (t_first + 1) // BLOCK_S * BLOCK_S)
    keys_at = (
        k + sample * k_b + head // shared * k_h + start.to(tl.int64) * k_s + (lanes[None, :] * k_s + d[:, None] * k_d)
    )  # (BLOCK_D, BLOCK_S)
    mask_of = mask + sample * mask_b + head * mask_h + row_offset * mask_t
    unit = scale  # the unit of a score
    if SCALED:
        unit = scale * 0.0 + 1.0
    best = tl.full((BLOCK_T, BLOCK_S), float("-inf"), tl.float32)
    peak = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_T,), 0.0, tl.float32)
    moment = tl.full((BLOCK_T,), 0.0, tl.float32)
    for _ in range(start, middle, BLOCK_S):
        keys = tl.load(keys_at) if WHOLE else tl.load(keys_at, mask=d[:, None] < d_end, other=0.0)
        logits = _logits(queries, keys, scale, softcap, SOFTCAP, SCALED)
        if FULL:
            peak, total, moment = _add(logits, unit * LOG2_E, peak, total, moment)
        else:
            best = tl.maximum(best, logits, propagate_nan=tl.PropagateNan.ALL)
        keys_at += BLOCK_S * k_s
    for first in range(middle, stop, BLOCK_S):
        s = first + lanes
        keys = tl.load(keys_at, mask=(s[None, :] < s_end) & (d[:, None] < d_end), other=0.0)
        logits = _logits(queries, keys, scale, softcap, SOFTCAP, SCALED)
        visible = (t[:, None] < t_end) & (s[None, :] < s_end)
        if CAUSAL:
            visible = visible & (s[None, :] <= t[:, None])
        if WINDOW:
            visible = visible & (t[:, None] - s[None, :] < window)
        if MASK == 1:
            visible = visible & (tl.load(mask_of + s[None, :] * mask_s, mask=visible, other=0) != 0)
        if MASK == 2:
            logits += tl.load(mask_of + s[None, :] * mask_s, mask=visible, other=0.0).to(tl.float32)
        logits = tl.where(visible, logits, float("-inf"))
        if FULL:
            peak, total, moment = _add(logits, unit * LOG2_E, peak, total, moment)
        else:
            best = tl.maximum(best, logits, propagate_nan=tl.PropagateNan.ALL)
        keys_at += BLOCK_S * k_s
    out = aggregates + sample * blocks + block
    if FULL:
        _store(out + head * 7 * columns, columns, t < t_end, peak * unit, total, moment * unit)
    else:
        wrong = (best != best) | (best == float("inf"))
        broken = tl.max(wrong.to(tl.int32), axis=1)
        peak = tl.max(tl.where(wrong, float("-inf"), best), axis=1)
        out += head * 2 * columns
        tl.store(out, tl.sum(((broken > 0) & (t < t_end)).to(tl.float32), axis=0))
        tl.store(out + columns, tl.max(tl.where((broken == 0) & (t < t_end), peak * unit, float("-inf")), axis=0))


@jit
def _logits(
    queries: tl.tensor,
    keys: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    SOFTCAP: tl.constexpr,
    SCALED: tl.constexpr,
) -> tl.tensor:
    """Scores (BLOCK_T, BLOCK_S); without the scale where it is applied at the end."""
    logits = tl.dot(queries, keys, input_precision="ieee")
    if SCALED:
        logits *= scale
    if SOFTCAP:
        logits = softcap * (1.0 - 2.0 / (tl.exp(2.0 * logits / softcap) + 1.0))  # tanh
    return logits


@jit
def _add(
    logits: tl.tensor, rate: tl.tensor, peak: tl.tensor, total: tl.tensor, moment: tl.tensor
) -> tuple[tl.tensor, ...]:
    """One more tile of the online softmax; exp(s) is 2 to the power of s * rate."""
    higher = tl.maximum(peak, tl.max(logits, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    rescale = tl.exp2((peak - base) * rate)
    moved = tl.where(total > 0.0, peak - base, 0.0)
    away = logits - base[:, None]
    weights = tl.exp2(away * rate)
    moment = rescale * (moment + total * moved) + tl.sum(weights * tl.maximum(away, FAR), axis=1)
    total = rescale * total + tl.sum(weights, axis=1)
    return higher, total, moment


@jit
def _largest(
    aggregates: tl.tensor,
    out: tl.tensor,
    heads: tl.tensor,
    columns: tl.tensor,
    rows: tl.tensor,
    MERGE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The largest logit of all heads; the first head wins a tie."""
    head = tl.arange(0, HEADS)
    broken = tl.full((HEADS, BLOCK), 0.0, tl.float32)
    best = tl.full((HEADS, BLOCK), float("-inf"), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)[None, :]
        held = (head[:, None] < heads) & (at < columns)
        source = aggregates + head[:, None] * 2 * columns + at
        broken += tl.load(source, mask=held, other=0.0)
        best = tl.maximum(best, tl.load(source + columns, mask=held, other=float("-inf")))
    of_head = tl.max(best, axis=1)
    peak = tl.max(of_head, axis=0)
    first = tl.min(tl.where(of_head == peak, head, HEADS), axis=0).to(tl.float32)
    count = tl.full((), 0.0, tl.float32) + rows
    wrong = tl.sum(tl.sum(broken, axis=1), axis=0)
    if MERGE:
        old, old_head = tl.load(out + 2), tl.load(out + 3)
        count += tl.load(out)
        wrong += tl.load(out + 1)
        tied = tl.where(old == peak, tl.minimum(first, old_head), old_head)
        first = tl.where(peak > old, first, tied)
        peak = tl.maximum(peak, old)
    tl.store(out, count)
    tl.store(out + 1, wrong)
    tl.store(out + 2, peak)
    tl.store(out + 3, first)


@jit
def _store(
    out: tl.tensor, columns: tl.tensor, held: tl.tensor, peak: tl.tensor, total: tl.tensor, moment: tl.tensor
) -> None:
    broken = held & (total != total)
    whole = held & (total > 0.0)
    length = tl.where(whole, total, 1.0)
    lse = tl.where(whole, peak + tl.log(length), 0.0)
    entropy = tl.where(whole, tl.log(length) - moment / length, 0.0)
    tl.store(out, tl.sum((whole | broken).to(tl.float32), axis=0))
    tl.store(out + columns, tl.sum(broken.to(tl.float32), axis=0))
    tl.store(out + 2 * columns, tl.sum(lse, axis=0))
    tl.store(out + 3 * columns, tl.sum(lse * lse, axis=0))
    tl.store(out + 4 * columns, tl.sum(entropy, axis=0))
    tl.store(out + 5 * columns, tl.max(tl.where(whole, peak, float("-inf")), axis=0))
    tl.store(out + 6 * columns, tl.max(tl.where(whole, 1.0 / length, float("-inf")), axis=0))
