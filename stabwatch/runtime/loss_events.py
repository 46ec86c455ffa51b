"""The trained loss of a watch, from the backward passes of its process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.probes.trained_loss import TrainedLoss, objective

RELISTED = 8
"""How often the parameters are listed again because a backward pass reached none of them."""

Gradients = Sequence[Tensor | None] | None


class LossEvents:
    """Hands backward passes to a `TrainedLoss`.

    Passes of steps that are not recorded are not looked at, unless `following`: then they say where steps end.
    """

    def __init__(self, model: nn.Module, context: TapContext) -> None:
        self._model = model
        self._context = context
        self._forward = False
        self._relisted = 0
        self.following = True
        self.trained = TrainedLoss.of(model.parameters())
        self._ids = {id(p) for p in model.parameters()}

    @property
    def _looks(self) -> bool:
        return self.following or self._context.flags.open

    def forward_begins(self) -> None:
        """The model is called in training."""
        self._forward = True

    def begins(self) -> None:
        """A backward pass begins."""
        if self._looks:
            self.trained.begin()

    def ended(self, roots: Sequence[Tensor], gradients: Gradients) -> bool:
        """It has ended; returns whether it reached the parameters of this model, as far as that is looked at."""
        if not self._looks:
            return True
        if not self.trained.reached():
            return False
        self._add(roots, gradients)
        return True

    def unclear(self, roots: Sequence[Tensor], gradients: Gradients) -> bool:
        """A pass reached nothing that is compared, and no other watch hears it; returns whether it was counted.

        Where gradients are freed during the backward pass it counts if the model was called before it.
        """
        if not self._forward or not any(root.requires_grad for root in roots):
            return False
        if self._relisted < RELISTED:  # the parameters may have been replaced since they were listed
            self._relisted += 1
            fresh = TrainedLoss.of(self._model.parameters())
            if [*map(id, fresh.parameters)] != [*map(id, self.trained.parameters)]:
                fresh.ever, self.trained = self.trained.ever, fresh
                self._ids = {id(p) for p in self._model.parameters()}
        if self.trained.ever or not any(p.requires_grad for p in self.trained.parameters):
            return False
        self._forward = False
        self.trained.give(objective(roots, gradients) if self._context.flags.open else None)
        return True

    def _add(self, roots: Sequence[Tensor], gradients: Gradients) -> None:
        self._forward = False
        self.trained.add(objective(roots, gradients) if self._context.flags.open else None)

    def taken(self, outputs: Sequence[Tensor], gradients: Gradients, inputs: Sequence[Any]) -> None:
        """`torch.autograd.grad` was called."""
        if self._looks and any(id(x) in self._ids for x in inputs):
            self.trained.give(objective(outputs, gradients))

    def step_ends(self) -> None:
        """Hand over the loss of the step."""
        value = self.trained.take()
        if value is not None and self._context.flags.open:
            self._context.run.update_loss("backward", value)
