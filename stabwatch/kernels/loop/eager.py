"""Plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def gain(rows: Tensor) -> Tensor:
    """rows (L, 4), moments by call -> float32 (4,): finite numbers of the last measured call, the sum of their squares,
    and the same of the first one; zeros for fewer than two calls."""
    known = (rows[:, 0] - rows[:, 2] > 0).float()
    index = torch.arange(1, len(rows) + 1, dtype=torch.float32, device=rows.device)
    ends = torch.stack(((known * index).argmax(), (known * (len(rows) + 1 - index)).argmax()))
    found = rows.index_select(0, ends)
    pairs = torch.stack((found[:, 0] - found[:, 2], found[:, 1]), dim=1).flatten()
    return torch.where(known.sum() > 1, pairs, 0.0)


def relative_step(x: Tensor, previous: Tensor) -> Tensor:
    """float32 (3,): how many numbers, the sum of squares of x - previous, and that of x. Both have one shape."""
    now = x.detach().float()
    change = torch.linalg.vector_norm(now - previous.detach().float())
    count = torch.full((), float(x.numel()), device=x.device)
    return torch.stack((count, change.square(), torch.linalg.vector_norm(now).square()))
