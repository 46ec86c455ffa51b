"""In which order a training loop clips, unscales and steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import OptState

from stabwatch.hooks.probes.trained_loss import scaler_of

MOST = 256
"""Backward passes of a step that are remembered."""


class LoopOrder:
    """Follows backward passes, clipping and steps of one watch. Nothing here waits for the device."""

    def __init__(self) -> None:
        self._passes = 0
        self._scaled: deque[bool] = deque(maxlen=MOST)
        """Of the last backward passes of the open step: was the loss multiplied by a gradient scaler?"""
        self._passes_before = 0
        """Of the step that was taken last."""
        self.scaler: Any = None
        """The gradient scaler of the losses of the open step."""
        self._bare = True
        """No scaler has scaled the loss of the backward pass that began last."""

    def backward_begins(self, roots: Sequence[Tensor]) -> None:
        """A backward pass begins at these roots, of whatever model."""
        scaler = scaler_of(roots)
        self.scaler = self.scaler if scaler is None else scaler
        self._bare = scaler is None

    def pass_ended(self) -> None:
        """A backward pass has reached this model."""
        self._passes += 1
        self._scaled.append(not self._bare)

    def gradients_taken(self) -> None:
        """Gradients of this model were computed, and not put into its parameters."""
        self._passes += 1

    def clipped(self, limit: Any) -> float:
        """Gradients were clipped: 1 if the optimizer has used them before, 0 if not, NaN if nothing can be said."""
        if not isinstance(limit, int | float) or not math.isfinite(limit):
            return math.nan  # the norm was asked for
        if self._passes:
            return 0.0
        return 1.0 if self._passes_before else math.nan

    def before_step(self, optimizer: Any, untouched: bool) -> float:
        """An optimizer is about to step: 1 if its gradients are still multiplied by the loss scale, 0 if not.

        untouched: nothing but clipping has written into the gradients since they were computed. NaN without a scaler,
        and for optimizers that divide by the size of the gradient.
        """
        defaults = getattr(optimizer, "defaults", {})
        if self.scaler is None or not isinstance(defaults, dict) or {"eps", "betas"} & set(defaults):
            return math.nan
        states = getattr(self.scaler, "_per_optimizer_states", {})
        unscaled = any(state.get("stage") is not OptState.READY for state in list(states.values()))
        return float(untouched and not unscaled and getattr(optimizer, "grad_scale", None) is None)

    def terms_bare(self, kept: int) -> float:
        """Of the last passes, whose gradients were kept: 1 if a scaler has scaled the loss of some, and not of all."""
        last = [*self._scaled][-kept:] if kept else []
        return float(any(last) and not all(last))

    def stepped(self) -> None:
        """An optimizer has stepped."""
        self._passes, self._passes_before, self.scaler = 0, self._passes, None
        self._scaled.clear()
