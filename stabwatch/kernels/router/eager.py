"""Plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def router(logits: Tensor, top_k: int) -> Tensor:
    """logits (N, E) -> float32 (4,): tokens, entropies, squared logsumexps, largest load / mean load - 1."""
    logits = logits.detach().float()
    lse = torch.logsumexp(logits, dim=-1)
    p = torch.softmax(logits, dim=-1)
    chosen = logits.topk(top_k, dim=-1).indices.flatten()
    load = torch.zeros(logits.shape[-1], device=logits.device).scatter_add_(0, chosen, torch.ones_like(chosen).float())
    tokens = torch.full_like(lse[0], float(len(logits)))
    return torch.stack((tokens, torch.special.entr(p).sum(), lse.square().sum(), load.amax() / load.mean() - 1))
