"""Plain torch over B x H x T numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def bracket(lse: Tensor, log_keys: Tensor | float) -> Tensor:
    """float32 (6,): rows, sum of LSE squared, non-finite rows, upper bound, its head, lower bound.

    lse: (B, H, T) logsumexp of each query row; -inf marks a row that sees no key and is left out.
    log_keys: natural log of the visible keys, (T,) or a number; an overestimate keeps the bounds sound.
    """
    lse = lse.float()
    bad = torch.isnan(lse) | (lse == torch.inf)
    finite = torch.isfinite(lse)
    shown = torch.where(finite, lse, -torch.inf)
    upper, head = shown.amax(dim=(0, 2)).max(dim=0)
    return torch.stack(
        (
            finite.sum(dtype=torch.float32) + bad.sum(dtype=torch.float32),
            torch.where(finite, lse, 0.0).square().sum(),
            bad.sum(dtype=torch.float32),
            upper,
            head.float(),
            (shown - log_keys).amax(),
        )
    )
