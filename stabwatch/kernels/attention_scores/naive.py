"""The definition: the dense score matrix in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def scores(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """float64 (B, H, T, S): scaled, masked logits of `scaled_dot_product_attention`; -inf where masked.

    query (B, H, T, D), key (B, Hk, S, D) with Hk dividing H; mask bool (True is visible) or additive.
    """
    q, k = query.detach().double(), key.detach().double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
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
