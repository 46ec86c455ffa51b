"""Smaller steps after a critical alert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FACTOR = 0.5
LEAST = 1 / 64


class LearningRateBackoff:
    """Halves the learning rate at each critical alert, for the rest of the run and down to a 64th.

    The optimizer's groups hold the smaller rate only while they step: a scheduler goes on with rates of its own, and
    what it sets is multiplied by `scale`. Nothing is touched before the first alert.
    """

    name = "lr_backoff"

    def __init__(self, factor: float = FACTOR, least: float = LEAST) -> None:
        self._factor = factor
        self._least = least
        self._held: dict[int, list[Any]] = {}
        self.scale = 1.0

    def boundary(self, step: int) -> None:
        """Nothing to do between two steps."""

    def react(self, since: int) -> dict[str, Any] | None:
        """One more halving; None when the least is reached."""
        if self.scale * self._factor < self._least:
            return None
        self.scale *= self._factor
        return {"did": "learning rate multiplied", "scale": self.scale}

    @torch.no_grad()
    def before(self, optimizer: Any, step: int) -> None:
        """The optimizer is about to step."""
        if self.scale == 1.0:
            return
        self.after(optimizer)  # a step that failed half-way has not come here
        held = self._held[id(optimizer)] = []
        for group in optimizer.param_groups:
            rate = group["lr"]
            held.append(rate.clone() if isinstance(rate, Tensor) else rate)
            group["lr"] = rate.mul_(self.scale) if isinstance(rate, Tensor) else rate * self.scale

    @torch.no_grad()
    def after(self, optimizer: Any) -> None:
        """The optimizer has stepped, or will not."""
        for group, rate in zip(optimizer.param_groups, self._held.pop(id(optimizer), ()), strict=False):
            group["lr"] = group["lr"].copy_(rate) if isinstance(rate, Tensor) else rate
