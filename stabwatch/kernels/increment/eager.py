"""Plain torch: no matrix of the size of the model's width squared is made, and nothing waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.kernels.where import on_host

_TINY = torch.finfo(torch.float32).tiny


def increment(query: Tensor, key: Tensor, old_query: Tensor, old_key: Tensor) -> Tensor:
    """query (H, d, D) and key (G, d, D), G dividing H, after a step and before it -> float32 (7,).

    Of M = dQ' K + Q' dK of each head, with Q and K before the step: heads with a change, sum of their
    participation ratios (sum of s^2)^2 / sum of s^4 over the singular values s of M, sum of ||M||^2, of ||Q' K||^2,
    heads and sum of Shannon's entropies of s^2 over its sum (both zero but on the CPU: the host would wait for singular
    values), and the least ratio.
    """
    query, old_query = query.detach().float(), old_query.float()
    each = len(query) // len(key)
    key, old_key = (x.detach().float().repeat_interleave(each, dim=0) for x in (key, old_key))
    changes = query - old_query, key - old_key
    size = torch.stack([c.square().sum() for c in changes]).amax().sqrt()
    scale = torch.where(size > 0, size, 1.0)  # squares of squares of steps would leave the range of float32
    left = torch.cat((changes[0] / scale, old_query), dim=1)
    right = torch.cat((old_key, changes[1] / scale), dim=1)
    product = (left @ left.mT) @ (right @ right.mT)  # its eigenvalues are the squares of M's singular values
    trace = product.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=0.0)
    fourth = (product * product.mT).sum(dim=(1, 2))
    changed = (trace > 0) & (fourth > 0) & torch.isfinite(fourth)
    ratio = torch.where(changed, trace.square() / fourth.clamp(min=_TINY), 0.0)
    whole = ((old_query @ old_query.mT) * (old_key @ old_key.mT)).sum()
    least = torch.where(changed, ratio, torch.inf).amin()
    heads = changed.sum(dtype=torch.float32)
    nothing = torch.zeros_like(heads)
    entropies = (heads, _entropy(left, right, changed).sum()) if on_host(left) else (nothing, nothing)
    return torch.stack((heads, ratio.sum(), trace.sum() * scale.square(), whole, *entropies, least))


def _entropy(left: Tensor, right: Tensor, changed: Tensor) -> Tensor:
    """Of M = left' right of each head, (H,); 0 for one without a change or with numbers that are not finite."""
    left, right = (torch.where(changed[:, None, None], x, 0.0) for x in (left, right))
    core = torch.linalg.qr(left.mT, mode="r").R @ torch.linalg.qr(right.mT, mode="r").R.mT
    squares = torch.linalg.svdvals(core).square()
    total = squares.sum(dim=1, keepdim=True)
    return torch.special.entr(squares / torch.where(total > 0, total, 1.0)).sum(dim=1)
