"""The guard lr_backoff: a lower learning rate after a critical alert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FACTOR = 0.5
MIN_SCALE = 1 / 64


class LearningRateBackoff:
    """Halves the learning rate at each critical alert, for the rest of the run and down to a 64th.

    The optimizer's groups have the lower rate only during the step, so a scheduler keeps its own rates, which are
    multiplied by `scale`. Nothing changes before the first alert.
    """

    name = "lr_backoff"

    def __init__(self, factor: float = FACTOR, min_scale: float = MIN_SCALE) -> None:
        self._factor = factor
        self._min_scale = min_scale
        self._saved: dict[int, list[Any]] = {}
        self.scale = 1.0

    def boundary(self, step: int) -> None:
        """Nothing to do between two steps."""

    def react(self, since: int) -> dict[str, Any] | None:
        """Halve the rate once more; None at the minimum."""
        if self.scale * self._factor < self._min_scale:
            return None
        self.scale *= self._factor
        return {"did": "learning rate multiplied", "scale": self.scale}

    @torch.no_grad()
    def before(self, optimizer: Any, step: int) -> None:
        """Scale the rates before the step."""
        if self.scale == 1.0:
            return
        self.after(optimizer)  # not restored yet if the previous step raised
        saved = self._saved[id(optimizer)] = []
        for group in optimizer.param_groups:
            rate = group["lr"]
            saved.append(rate.clone() if isinstance(rate, Tensor) else rate)
            group["lr"] = rate.mul_(self.scale) if isinstance(rate, Tensor) else rate * self.scale

    @torch.no_grad()
    def after(self, optimizer: Any) -> None:
        """Restore the rates after the step."""
        for group, rate in zip(optimizer.param_groups, self._saved.pop(id(optimizer), ()), strict=False):
            group["lr"] = group["lr"].copy_(rate) if isinstance(rate, Tensor) else rate
