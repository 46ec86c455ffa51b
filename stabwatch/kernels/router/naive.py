"""The definition, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def router(logits: Tensor, top_k: int) -> Tensor:
    """logits (N, E) -> float64 (4,): tokens, entropies, squared logsumexps, largest load / mean load - 1."""
    logits = logits.detach().double()
    p = torch.softmax(logits, dim=-1)
    entropy = -(p * p.log()).nan_to_num().sum()
    load = torch.bincount(logits.topk(top_k, dim=-1).indices.flatten(), minlength=logits.shape[1]).double()
    violation = load.max() / load.mean() - 1
    square = torch.logsumexp(logits, dim=-1).square().sum()
    return torch.stack((torch.tensor(float(len(logits))).double(), entropy, square, violation))
