"""Plain torch: the scores in chunks of query rows, so that memory stays bounded.

Shapes: B batch, H query heads, G key heads (H = G * R), T queries, S keys, D head width.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from stabwatch.kernels.merge import Aggregates
from stabwatch.kernels.where import on_host, tracing

CHUNK_ELEMENTS = 1 << 22
"""Scores in memory at once: 16 MiB of float32."""
CAUSAL_ROWS = 32
"""Query rows in a chunk under a causal mask on the CPU. Keys that no row of the chunk sees are left out."""
TRACED_ELEMENTS = 1 << 24
"""Most scores of one call in a compiled graph. With more, query rows are strided, and the value is a lower bound."""


def largest_logit(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Aggregates:
    """Rows, non-finite rows, the largest logit, its head.

    query (B, H, T, D), key (B, G, S, D) with G dividing H; mask bool (True is visible) or additive,
    broadcastable to (B, H, T, S). The arguments are those of `scaled_dot_product_attention`.
    """
    b, h, t, d = query.shape
    g, s = key.shape[1], key.shape[2]
    factor = d**-0.5 if scale is None else scale
    q = query.detach().float().contiguous().view(b, g, h // g, t, d)
    k = key.detach().float().contiguous()
    m = None if mask is None else _grouped(mask.detach(), g, h // g)
    if tracing():
        stride = max(1, (b * h * t * s) // TRACED_ELEMENTS)
        rows = torch.arange(0, t, stride, device=query.device)
        hidden = torch.arange(s, device=query.device) > rows[:, None] if is_causal else None
        peaks = _peaks(q[..., ::stride, :], k, factor, _rows_of(m, slice(None, None, stride)), hidden)
    else:
        peaks = _chunked(q, k, factor, m, is_causal)
    return _summary(peaks.reshape(b, h, -1))


def _chunked(q: Tensor, k: Tensor, factor: float, mask: Tensor | None, is_causal: bool) -> Tensor:
    t, s = q.shape[-2], k.shape[-2]
    heads = q.shape[0] * q.shape[1] * q.shape[2]
    most = CAUSAL_ROWS if is_causal and on_host(q) else t
    chunk = max(1, min(most, CHUNK_ELEMENTS // max(1, heads * s)))
    out = []
    for start in range(0, t, chunk):
        stop = min(start + chunk, t)
        seen = min(s, stop) if is_causal else s
        hidden = _above_diagonal(stop - start, seen - start, q.device) if is_causal and start < seen else None
        chunk_mask = _rows_of(mask, slice(start, stop))
        if chunk_mask is not None and chunk_mask.shape[-1] > 1:
            chunk_mask = chunk_mask[..., :seen]
        out.append(_peaks(q[..., start:stop, :], k[..., :seen, :], factor, chunk_mask, hidden))
    return torch.cat(out, dim=-1)


def _peaks(q: Tensor, k: Tensor, factor: float, mask: Tensor | None, hidden: Tensor | None) -> Tensor:
    """Largest logit of each query row: (B, G, R, T'). `hidden` (T', last keys) is the causal part of the mask."""
    scores = _products(q, k, factor)
    if hidden is not None:
        scores[..., -hidden.shape[1] :].masked_fill_(hidden, -torch.inf)
    return _masked(scores, mask).amax(dim=-1)


def _products(q: Tensor, k: Tensor, factor: float) -> Tensor:
    b, g, r, t, d = q.shape
    heads = q.reshape(b * g, r * t, d)
    scores = torch.baddbmm(q.new_zeros(()), heads, k.reshape(b * g, -1, d).mT, beta=0, alpha=factor)
    return scores.view(b, g, r, t, -1)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


@lru_cache(maxsize=16)
def _above_diagonal(rows: int, keys: int, device: torch.device) -> Tensor:
    return torch.ones(rows, keys, dtype=torch.bool, device=device).triu(1)


def _grouped(mask: Tensor, g: int, r: int) -> Tensor:
    """A mask broadcastable to (B, H, T, S), with its head axis split like the query's."""
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    if mask.shape[1] == 1:
        return mask.unsqueeze(2)
    return mask.reshape(mask.shape[0], g, r, *mask.shape[2:])


def _rows_of(mask: Tensor | None, rows: slice) -> Tensor | None:
    if mask is None or mask.shape[-2] == 1:
        return mask
    return mask[..., rows, :]


def _summary(peaks: Tensor) -> Aggregates:
    """Partial aggregates of the largest logits of all rows. peaks: (B, H, rows)."""
    if on_host(peaks):
        logit, index = (x.item() for x in peaks.amax(dim=(0, 2)).max(dim=0))
        if math.isfinite(logit):
            return float(peaks.numel()), 0.0, logit, float(index)
    bad = torch.isnan(peaks) | (peaks == torch.inf)
    best, head = torch.where(torch.isfinite(peaks), peaks, -torch.inf).amax(dim=(0, 2)).max(dim=0)
    rows = torch.full((), float(peaks.numel()), dtype=torch.float32, device=peaks.device)
    return torch.stack((rows, bad.sum(dtype=torch.float32), best, head.float()))


def largest_score(scores: Tensor, heads: int) -> Aggregates:
    """`largest_logit` of scores that the model computed: (..., T, S), with the heads in the axis before T."""
    peaks = scores.detach().float().amax(dim=-1)
    return _summary(peaks.reshape(-1, heads, peaks.shape[-1]))


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
    b, h, t, d = query.shape
    g, s = key.shape[1], key.shape[2]
    q = query.detach()[:, :, ::stride].float().reshape(b, g, h // g, -1, d)
    k = key.detach().float()
    m = None if mask is None else _rows_of(_grouped(mask.detach(), g, h // g), slice(None, None, stride))
    rows = torch.arange(0, t, stride, device=q.device)[:, None]
    keys = torch.arange(s, device=q.device)
    chunk = max(1, CHUNK_ELEMENTS // max(1, b * h * s))
    chunks = []
    for start in range(0, len(rows), chunk):
        span = slice(start, start + chunk)
        scores = _products(q[..., span, :], k, d**-0.5 if scale is None else scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if is_causal:
            scores = scores.masked_fill(keys > rows[span], -torch.inf)
        if window is not None:
            scores = scores.masked_fill(rows[span] - keys >= window, -torch.inf)
        chunks.append(_statistics(_masked(scores, _rows_of(m, span))))
    statistics = torch.stack(chunks)
    return torch.cat((statistics[..., :5].sum(dim=0), statistics[..., 5:].amax(dim=0)), dim=-1)


def statistics_of_scores(scores: Tensor, stride: int) -> Tensor:
    """`score_statistics` of scores that a model computed, (B, H, T, S)."""
    return _statistics(scores.detach()[:, :, None, ::stride].float())


def _statistics(scores: Tensor) -> Tensor:
    """Statistics of some rows: scores (B, G, R, T', S) -> (H, 7)."""
    peak = scores.amax(dim=-1)
    bad = torch.isnan(peak) | (peak == torch.inf)
    good = torch.isfinite(peak)
    away = scores - torch.where(good, peak, 0.0)[..., None]
    weights = away.exp()
    total = weights.sum(dim=-1)
    mean = torch.where(weights > 0, weights * away, 0.0).sum(dim=-1) / total
    lse = torch.where(good, peak + total.log(), 0.0)
    entropy = torch.where(good, total.log() - mean, 0.0)
    sums = torch.stack((good | bad, bad, lse, lse.square(), entropy), dim=-1).sum(dim=(0, 3))
    peaks = torch.stack((peak, 1 / total), dim=-1)
    highest = torch.where(good[..., None], peaks, -torch.inf).amax(dim=(0, 3))
    return torch.cat((sums, highest), dim=-1).flatten(0, 1)
