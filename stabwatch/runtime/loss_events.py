"""The trained loss of a watch, from the backward passes of its process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stabwatch.distributed.unreduced import holders
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.probes.trained_loss import Number, TrainedLoss, added, objective

Gradients = Sequence[Tensor | None] | None


class LossEvents:
    """Hands backward passes to a `TrainedLoss`.

    After the watch has ended they are not looked at, unless `following`: then they say where steps end.
    """

    def __init__(self, model: nn.Module, context: TapContext) -> None:
        self._model = model
        self._context = context
        self._forward = False
        self._unreached = 0
        self._split = False
        self._held: Number | None = None
        self.following = True
        self.staged = False
        """The model is one or several stages of a pipeline: its passes follow on its forwards, and none is of another
        model. The last stage says what the loss is; the roots of others are activations."""
        self.trained = TrainedLoss.of(model.parameters(), kept_by=holders(model))
        self._ids = {id(p) for p in model.parameters() if p.requires_grad}

    def follow(self, model: nn.Module) -> None:
        """The model has changed: compare the parameters that it has now, also those that are frozen for a while."""
        self._model, self._unreached = model, 0
        fresh = TrainedLoss.of(model.parameters(), kept_by=holders(model), known=self._ids)
        unsure = self.trained.unsure
        fresh.inherit(self.trained)
        fresh.unsure = unsure
        self.trained = fresh
        self._ids = {id(p) for p in model.parameters() if p.requires_grad or id(p) in self._ids}

    @property
    def _looks(self) -> bool:
        return self.following or self._context.flags.attached

    def forward_begins(self) -> None:
        """The model is called in training."""
        self._forward = True

    def stepped(self) -> None:
        """An optimizer has stepped: passes from now on may belong to the next step."""
        self._split = True

    def begins(self) -> None:
        """A backward pass begins."""
        if self._split:
            self._hold()
        if self._looks:
            self.trained.begin()

    def ended(self, roots: Sequence[Tensor], gradients: Gradients, known: float | None = None) -> bool:
        """It has ended; returns whether it reached the parameters of this model, as far as that is looked at.

        known: its objective, if that was read when it began.
        """
        if not self._looks:
            return True
        if not self.trained.reached():
            self._list_all()
            return False
        self._add(roots, gradients, known)
        return True

    def _list_all(self) -> None:
        """A pass reached nothing that is compared: compare all parameters from now on, also those added by now.

        This is done at the first such pass, the second, the fourth, and so on: other models have passes too.
        """
        self._unreached += 1
        if self._unreached & (self._unreached - 1):
            return
        parameters, known = list(self._model.parameters()), self._ids
        fresh = TrainedLoss([p for p in parameters if p.requires_grad or id(p) in known], holders(self._model))
        if [*map(id, fresh.parameters)] != [*map(id, self.trained.parameters)]:
            fresh.inherit(self.trained)
            self.trained, self._ids = fresh, {id(p) for p in fresh.parameters}

    def unclear(self, roots: Sequence[Tensor], gradients: Gradients) -> bool:
        """A pass reached nothing that is compared, and no other watch hears it; returns whether it was counted.

        Where gradients are freed during the backward pass it counts if the model was called before it.
        """
        if not (self._forward or self.staged) or not any(root.requires_grad for root in roots):
            return False
        known = self.trained.ever and not self.staged
        if known or not any(p.requires_grad for p in self.trained.parameters):
            return False
        self._forward = False
        count = self.trained.add if self.staged else self.trained.give
        count(self._objective(roots, gradients))
        return True

    def _add(self, roots: Sequence[Tensor], gradients: Gradients, known: float | None) -> None:
        self._forward = False
        self.trained.add(self._objective(roots, gradients, known))

    def taken(self, outputs: Sequence[Tensor], gradients: Gradients, inputs: Sequence[Any]) -> None:
        """`torch.autograd.grad` was called."""
        if self._looks and not self.staged and any(id(x) in self._ids for x in inputs):
            self.trained.give(objective(outputs, gradients))

    def of_last_stage(self, loss: Tensor) -> None:
        """The gradients of this loss of a micro-batch were computed."""
        if self._context.flags.attached:
            self.trained.collect(objective([loss], None))

    def divided(self, factor: float) -> None:
        """All gradients so far were divided, and with them the objective that they are of."""
        if self.trained.total is not None and factor != 1:
            self.trained.total = self.trained.total / factor

    def _objective(self, roots: Sequence[Tensor], gradients: Gradients, known: float | None = None) -> Number | None:
        if self.staged or not self._context.flags.attached:
            return None
        return objective(roots, gradients) if known is None else known

    def _hold(self) -> None:
        self._split, value = False, self.trained.take()
        if value is not None:
            self._held = added(self._held, value)

    def step_ends(self, repeated: bool = False) -> None:
        """Hand over the loss of the step; `repeated`: passes since its last optimizer stepped are of the next step."""
        if self._split or not repeated:
            self._hold()
        value, self._held = self._held, None
        if value is not None and self._context.flags.attached:
            self._context.run.update_loss("backward", value)
