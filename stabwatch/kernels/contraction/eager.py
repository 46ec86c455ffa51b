"""Plain torch: weights between some tokens of one sample, and a few steps of power iteration on all heads."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.power_iteration import start

MOST = 256
"""The first tokens, which are read. Under a causal mask their weights are exact, else those of a window."""
VECTORS = 8
STEPS = 16
"""Vectors of the power iteration; the best counts. A Rayleigh-Ritz step would need a hundred small operations."""
HIDDEN = -1e30
"""An additive mask hides a key with minus infinity, or with the smallest number of its type."""


def contraction(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    real: Tensor | None = None,
) -> Tensor:
    """float32 (2,): heads, sum of the largest singular values of their P A P, for the first sample of a call.

    query (B, H, T, D), key (B, G, T, D) with G dividing H; the other arguments are those of
    `scaled_dot_product_attention`. real: bool (B, T), false for padding. A holds the attention weights. P subtracts the
    mean over tokens. Heads with a NaN or infinite logit are left out, and heads with fewer than two tokens. Uses no
    random generator and does not wait for the device.
    """
    q, k = (x.detach()[0, :, :MOST].float() for x in (query, key))
    heads, n, width = q.shape
    scores = q @ k.repeat_interleave(heads // len(k), dim=0).mT * (width**-0.5 if scale is None else scale)
    visible = torch.ones(n, n, dtype=torch.bool, device=q.device)
    visible = (visible.tril() if is_causal else visible).expand(heads, n, n)
    if mask is not None:
        part = _of_first(mask.detach(), n)
        visible = visible & (part if part.dtype == torch.bool else part > _hidden(part.dtype))
        scores = scores if part.dtype == torch.bool else scores + part.float()
    if real is not None:
        visible = visible & real[0, :n, None] & real[0, :n]
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    plain = mask is None and real is None
    values = _largest(_centred(weights) if plain else _centred_where(weights, visible))
    several = visible.any(dim=-1).sum(dim=-1) > 1
    found = torch.isfinite(values) & several
    return torch.stack((found.sum(dtype=torch.float32), torch.where(found, values, 0.0).sum()))


def _of_first(mask: Tensor, n: int) -> Tensor:
    """(H or 1, n, n) of a mask that broadcasts to (B, H, T, T)."""
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    return mask[0, :, :n, :n].expand(-1, n, n)


def _hidden(kind: torch.dtype) -> float:
    """Lowest value that still counts as a mask; float16 has no number below -65504."""
    return max(HIDDEN, torch.finfo(kind).min / 2)


def _centred(weights: Tensor) -> Tensor:
    """P A P (H, n, n)."""
    inner = weights - weights.mean(dim=-1, keepdim=True)
    return inner - inner.mean(dim=-2, keepdim=True)


def _centred_where(weights: Tensor, visible: Tensor) -> Tensor:
    """P A P with only the keys that a row sees and the rows that see a key."""
    rows, columns = visible.any(dim=-1, keepdim=True), visible.any(dim=-2, keepdim=True)
    inner = torch.where(rows, weights, 0.0)
    inner = inner - inner.sum(-1, keepdim=True) / columns.sum(-1, keepdim=True).clamp(min=1)
    inner = torch.where(rows & columns, inner, 0.0)
    inner = inner - inner.sum(-2, keepdim=True) / rows.sum(-2, keepdim=True).clamp(min=1)
    return torch.where(rows & columns, inner, 0.0)


def _largest(inner: Tensor) -> Tensor:
    """The largest singular value (H,) of matrices (H, n, n). Vectors are rows; on a CPU, such products are faster."""
    block = start(inner, VECTORS).mT
    for _ in range(STEPS):
        block = torch.nn.functional.normalize(block @ inner.mT @ inner, dim=-1, eps=1e-30)
    return torch.linalg.vector_norm(block @ inner.mT, dim=-1).amax(dim=-1)
