"""The definition, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def increment(query: Tensor, key: Tensor, old_query: Tensor, old_key: Tensor) -> Tensor:
    """float64 (7,): see `eager.increment`; by the singular values of each head's matrix."""
    each = len(query) // len(key)
    ratios, change, whole, entropy = [], 0.0, 0.0, 0.0
    for h, (new, old) in enumerate(zip(query.double(), old_query.double(), strict=True)):
        k, before = key[h // each].double(), old_key[h // each].double()
        s = torch.linalg.svdvals((new - old).T @ before + old.T @ (k - before)).square()
        change += s.sum().item()
        whole += (old.T @ before).square().sum().item()
        if s.sum() > 0:
            ratios.append((s.sum().square() / s.square().sum()).item())
            entropy += torch.special.entr(s / s.sum()).sum().item()
    least = min(ratios, default=torch.inf)
    return torch.tensor([len(ratios), sum(ratios), change, whole, len(ratios), entropy, least], dtype=torch.float64)
