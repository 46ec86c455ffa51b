"""In which order a training loop clips, unscales and steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import OptState

from stabwatch.hooks.probes.trained_loss import scaler_of


class LoopOrder:
    """Follows backward passes, clipping and steps of one watch. Nothing here waits for the device."""

    def __init__(self) -> None:
        self._passes = 0
        self._passes_before = 0
        """Of the step that was taken last."""
        self.scaler: Any = None
        """The gradient scaler of the losses of the open step."""

    def backward_begins(self, roots: Sequence[Tensor]) -> None:
        """A backward pass begins at these roots, of whatever model."""
        scaler = scaler_of(roots)
        self.scaler = self.scaler if scaler is None else scaler

    def pass_ended(self) -> None:
        """Gradients of this model were computed."""
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

    def stepped(self) -> None:
        """An optimizer has stepped."""
        self._passes, self._passes_before, self.scaler = 0, self._passes, None
