"""Plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def growth(rows: Tensor, positions: Tensor | None = None) -> Tensor:
    """rows (L, 4), moments by depth -> float32 (3,): blocks, covariance of depth with ln(RMS), variance of depth.

    positions: the depth of each row, float32 (L,); by default its index.

    Both are sums; their quotient is the least-squares slope. A block with no measured output or a zero one is left
    out. With fewer than two blocks there is no slope, and the count is zero.
    """
    known_count = rows[:, 0] - rows[:, 2]
    known = (known_count > 0) & (rows[:, 1] > 0)
    log_rms = torch.where(known, rows[:, 1] / known_count, 1.0).log() / 2
    depth = torch.arange(len(rows), dtype=torch.float32, device=rows.device) if positions is None else positions
    blocks = known.sum(dtype=torch.float32)
    centred = torch.where(known, depth - (depth * known).sum() / blocks.clamp(min=1), 0.0)
    return torch.stack((blocks, (centred * log_rms).sum(), centred.square().sum())) * (blocks > 1)
