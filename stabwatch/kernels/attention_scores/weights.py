"""How a call's attention weights are spread over the keys. Plain torch, on some query rows."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.attention_scores.eager import _grouped, _masked, _products, _rows_of

ROWS = 64
"""Query rows of each head, evenly spread."""
SAMPLES = 4
"""Samples of the batch, the first ones."""
UNSEEN = -1e8
"""Scores from which down a key counts as masked: masks are -inf, or numbers from -1e9 to the least of a type."""
SINK = 0.3
"""Mean weight of the first key from which a head counts as one with a sink (Gu et al. 2024)."""


def weight_statistics(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """float32 (6,), sums over the rows that see a key and have finite logits: their number, weight of the first key
    that the row sees, largest weight, exp(entropy) over the number of keys it sees; heads, heads with a sink.

    query (B, H, T, D), key (B, G, S, D) with G dividing H; the arguments are those of `scaled_dot_product_attention`.
    """
    if mask is not None and mask.dim() == 4 and len(mask) > 1:
        mask = mask[:SAMPLES]
    query, key = query[:SAMPLES], key[:SAMPLES]
    b, h, t, d = query.shape
    g, s = key.shape[1], key.shape[2]
    stride = max(1, t // ROWS)
    q = query.detach()[:, :, ::stride].float().reshape(b, g, h // g, -1, d)
    scores = _products(q, key.detach().float(), d**-0.5 if scale is None else scale)
    if is_causal:
        rows = torch.arange(0, t, stride, device=q.device)[:, None]
        scores = scores.masked_fill(torch.arange(s, device=q.device) > rows, -torch.inf)
    shown = None if mask is None else _rows_of(_grouped(mask.detach(), g, h // g), slice(None, None, stride))
    return _spread(_masked(scores, shown).flatten(1, 2))


def spread_of_scores(scores: Tensor) -> Tensor:
    """The same of scores that a model computed, (B, H, T, S): without the keys that a mask took away."""
    some = scores[:SAMPLES, :, :: max(1, scores.shape[-2] // ROWS)].detach().float()
    return _spread(some.masked_fill(some <= UNSEEN, -torch.inf))


def _spread(scores: Tensor) -> Tensor:
    """scores (B, H, T', S), -inf where a key is not seen."""
    seen = scores > -torch.inf
    good = torch.isfinite(scores.amax(dim=-1)) & ~torch.isnan(scores).any(dim=-1)
    weights = torch.where(good[..., None], scores, 0.0).softmax(dim=-1)
    first = weights.gather(-1, seen.byte().argmax(dim=-1, keepdim=True))[..., 0]
    entropy = torch.special.entr(weights).sum(dim=-1)
    effective = entropy.exp() / seen.sum(dim=-1).clamp(min=1)
    rows = torch.stack((torch.ones_like(first), first, weights.amax(dim=-1), effective)) * good
    sums = torch.where(good, rows, 0.0).sum(dim=(1, 3))  # (4, H)
    sinks = (sums[1] > SINK * sums[0]).sum(dtype=torch.float32)
    heads = (sums[0] > 0).sum(dtype=torch.float32)
    return torch.cat((sums.sum(dim=1), torch.stack((heads, sinks))))
