"""Plain torch: nothing here waits for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM, OFTEN = 0.01, 0.02
"""Of the moving average of flips that go back, and the average above which a weight oscillates (Nagel et al. 2022)."""
NEAR = 0.005
"""A weight is at a decision boundary within this part of a level (OFQ)."""


@dataclass
class Memory:
    """What is kept of n weights between visits.

    integers: int16 (n,). direction: of the last flip, int8 (n,), 0 before the first. average: how often a flip went
    back, float32 (n,).
    """

    integers: Tensor
    direction: Tensor
    average: Tensor

    def flips(self, integers: Tensor) -> Tensor:
        """Which integers have changed, bool (n,); the new ones are kept."""
        change = (integers.int() - self.integers.int()).sign().to(torch.int8)
        went_back = change * self.direction < 0
        self.average.mul_(1 - MOMENTUM).add_(went_back, alpha=MOMENTUM)
        self.direction = torch.where(change != 0, change, self.direction)
        self.integers = integers
        return change != 0


def quantised(
    weights: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, memory: Memory | None
) -> tuple[Tensor, Tensor | None, Memory]:
    """weights, scale and zero point (n,) -> float32 (2,), float32 (3,), and what to give to the next visit.

    low, high: smallest and largest integer, within int16. memory: None at the first visit, and then the second result.
    First: weights between the smallest and the largest integer, where the decision boundaries are; and those near one,
    divided by the share that would be if weights were spread evenly. Second: weights that are finite; those whose
    integer has changed since the last visit; those that oscillate.
    """
    x = weights.float() * scale.float().reciprocal()  # as torch.ao and torchao, whose extremes can lie on a boundary
    finite, floor, zero_point = x.isfinite(), x.floor(), zero_point.float()
    integers = torch.where(finite, (x.round() + zero_point).clamp(low, high), low).to(torch.int16)
    below = floor + zero_point
    between = (below >= low) & (below < high)  # not of NaN
    near = between & ((x - floor - 0.5).abs() < NEAR)
    levels = torch.stack((between.sum(), near.sum() / (2 * NEAR))).float()
    if memory is None:
        return levels, None, Memory(integers, torch.zeros_like(integers, dtype=torch.int8), torch.zeros_like(x))
    flipped = memory.flips(torch.where(finite, integers, memory.integers))
    return levels, torch.stack((finite, flipped, finite & (memory.average > OFTEN))).sum(dim=1).float(), memory
