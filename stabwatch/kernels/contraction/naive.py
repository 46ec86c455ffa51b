"""The definition: dense attention weights and their singular values, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def contraction(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    real: Tensor | None = None,
) -> Tensor:
    """float64 (H,): largest singular value of each head's P A P, for the first sample of a self-attention call.

    query (B, H, T, D), key (B, G, T, D). A holds the weights, and P subtracts the mean over tokens. Keys that no query
    sees, queries that see no key and tokens that are not real (B, T) are left out of both. NaN for a head with a
    NaN or infinite logit, or with fewer than two queries.
    """
    q, k = query[0].detach().double(), key[0].detach().double()
    k = k.repeat_interleave(len(q) // len(k), dim=0)
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    visible = torch.ones(logits.shape, dtype=torch.bool)
    if is_causal:
        visible = visible.tril()
    if mask is not None:
        first = mask.detach().expand(len(query), *logits.shape)[0]
        visible = visible & (first if mask.dtype == torch.bool else first > torch.finfo(mask.dtype).min)
        logits = logits if mask.dtype == torch.bool else logits + first.double()
    if real is not None:
        visible = visible & real[0][:, None] & real[0]
    out = []
    for head, sees in zip(logits, visible, strict=True):
        rows, columns = sees.any(1), sees.any(0)
        head, sees = head[rows][:, columns], sees[rows][:, columns]
        if head[sees].isfinite().all() and len(head) > 1:
            weights = head.masked_fill(~sees, -torch.inf).softmax(dim=-1)
            inner = weights - weights.mean(1, keepdim=True)
            out.append(torch.linalg.svdvals(inner - inner.mean(0, keepdim=True))[0])
        else:
            out.append(torch.tensor(torch.nan, dtype=torch.float64))
    return torch.stack(out)
