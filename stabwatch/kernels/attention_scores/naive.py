"""The definition: the dense score matrix in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def scores(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """float64 (B, H, T, S): scaled, masked logits of `scaled_dot_product_attention`; -inf where masked.

    query (B, H, T, D), key (B, Hk, S, D) with Hk dividing H; mask bool (True is visible) or additive;
    query t sees only keys s with t - s < window; softcap comes before the mask.
    """
    q, k = query.detach().double(), key.detach().double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    if window is not None:
        behind = torch.arange(s.shape[-2])[:, None] - torch.arange(s.shape[-1])
        s = s.masked_fill(behind >= window, -torch.inf)
    if is_causal:
        visible = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).tril()
        s = s.masked_fill(~visible, -torch.inf)
    if mask is not None:
        s = s.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else s + mask.double()
    return s


def largest_logit(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """float64 (4,): rows, non-finite rows, the largest finite logit, its head (ties: the smaller)."""
    s = scores(query, key, mask, is_causal, scale)
    peaks = s.amax(dim=-1)
    bad = torch.isnan(peaks) | (peaks == torch.inf)
    per_head = torch.where(torch.isfinite(peaks), peaks, -torch.inf).amax(dim=(0, 2))
    best = per_head.max()
    head = torch.nonzero(per_head == best)[0, 0]
    return torch.stack((torch.tensor(float(peaks.numel())), bad.sum().double(), best, head.double())).double()


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
    """float64 (H, 7): rows that see a key, non-finite ones among them; over the others: sums of logsumexp, its square
    and entropy; largest logit, largest weight."""
    heads = scores(query, key, mask, is_causal, scale, window, softcap)[:, :, ::stride].transpose(0, 1).flatten(1, 2)
    return torch.stack([_of_head(rows) for rows in heads])


def _of_head(rows: Tensor) -> Tensor:
    """rows: (N, S)."""
    rows = rows[(rows != -torch.inf).any(dim=1)]
    good = rows[(rows < torch.inf).all(dim=1)]
    lse = torch.logsumexp(good, dim=1)
    weights = torch.softmax(good, dim=1)
    entropy = torch.special.entr(weights).sum()
    peaks = (good.max().item(), weights.max().item()) if len(good) else (-torch.inf, -torch.inf)
    counts = (len(rows), len(rows) - len(good))
    return torch.tensor([*counts, lse.sum(), lse.square().sum(), entropy, *peaks], dtype=torch.float64)


def weight_statistics(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """float64 (6,): see `weights.weight_statistics`; over all rows of all samples."""
    found, heads, sinks = torch.zeros(4, dtype=torch.float64), 0, 0
    for head in scores(query, key, mask, is_causal, scale).transpose(0, 1).flatten(1, 2):
        mine = [_of_row(row[row > -torch.inf]) for row in head if (row > -torch.inf).any() and (row < torch.inf).all()]
        heads += bool(mine)
        if mine:
            total = torch.tensor(mine, dtype=torch.float64).sum(dim=0)
            sinks += bool(total[1] > 0.3 * total[0])
            found += total
    return torch.cat((found, torch.tensor([heads, sinks], dtype=torch.float64)))


def _of_row(row: Tensor) -> tuple[float, ...]:
    weights = torch.softmax(row, dim=0)
    effective = torch.special.entr(weights).sum().exp() / len(row)
    return 1.0, weights[0].item(), weights.max().item(), effective.item()
