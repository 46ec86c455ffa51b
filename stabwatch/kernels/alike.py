"""Are the samples of a batch all the same, and how far are they apart?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, COLUMNS = 64, 4096
"""Samples that are compared, and numbers of each, at most."""
FEWEST = 8
"""Fewest samples that say something."""
FEATURES = 4
"""Fewest features of a sample whose direction says something."""
EQUAL = 1e-12
"""Variance of numbers that are all the same."""
SOME = 256
"""Samples, and numbers of each, whose distance is looked at, at most."""


def alike(x: Tensor) -> Tensor:
    """float32 (): the share of samples (batch, ...) that equal the first one."""
    rows = x.detach()[:ROWS].reshape(min(len(x), ROWS), -1)[:, :COLUMNS]
    return (rows == rows[:1]).all(dim=1).float().mean()


def apart(x: Tensor) -> Tensor:
    """float32 (): the standard deviation over samples (batch, ...), of all their numbers together."""
    rows = x.detach()[:SOME].reshape(min(len(x), SOME), -1)
    return rows[:, :: -(-rows.shape[1] // SOME) or 1].float().var(dim=0, unbiased=False).mean().sqrt()


def apart_from_zero(x: Tensor) -> Tensor:
    """float32 (): the root mean square of the numbers that `apart` compares; not below 1e-12."""
    rows = x.detach()[:SOME].reshape(min(len(x), SOME), -1)
    return rows[:, :: -(-rows.shape[1] // SOME) or 1].float().square().mean().sqrt().clamp(min=EQUAL)


def unexplained(output: Tensor, target: Tensor) -> Tensor:
    """float32 (): squared error over the variance of the targets (samples, ...); 1 is what their mean gives.

    0 where the targets are all the same.
    """
    some = [x.detach()[:SOME].reshape(min(len(x), SOME), -1) for x in (output, target)]
    output, target = (x[:, :: -(-x.shape[1] // SOME) or 1].float() for x in some)
    error, variance = (output - target).square().mean(), target.var(dim=0).mean()
    return torch.where(variance > EQUAL, error / variance.clamp(min=EQUAL), 0.0)


def directions_apart(x: Tensor) -> Tensor | None:
    """float32 (): the same of rows (samples, features) that are scaled to length 1; None for other shapes, or few."""
    if x.dim() != 2 or len(x) < FEWEST or x.shape[1] < FEATURES or not x.is_floating_point():
        return None
    return apart(F.normalize(x.detach()[:SOME].float(), dim=-1))
