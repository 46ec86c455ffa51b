"""Why a run has no records: said once after some steps or forwards, and again at its end."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any
from weakref import WeakSet

from stabwatch.hooks.base.tensors import first_tensor
from stabwatch.hooks.forward import WITHIN_TRANSFORM

PATIENCE = 10
"""Steps of optimizers, or training forwards of the model, by which there should be a record."""
MANY = 64
"""Training forwards without a step that are no accumulation of gradients, where they are all of a run."""
PART, USUAL = 0.25, 16
"""Forwards since the last step, as a share of all, and over those of a usual step: the program steps no more."""
KEY = "stabwatch"
"""Under which the graph of the first forward holds something of ours, to show that it is still kept."""
TO_BE_RECORDED = "Give the parameters their gradients and an optimizer, and its steps are recorded"
"""What to do where gradients are computed by `torch.func`."""
NAMED = 3
"""Optimizers that a sentence names."""


class Silence:
    """Counts what was seen of a training that has no record yet. first_step: number of the first step."""

    def __init__(self, model: str, first_step: int = 0) -> None:
        self._model = model
        self._first_step = first_step
        self._graph: weakref.ref[_Kept] | None = None
        self._others: Counter[str] = Counter()
        self._own: Counter[int] = Counter()
        self._steppers: WeakSet[Any] = WeakSet()
        """Optimizers that have held parameters of the model."""
        self.forwards = 0
        """Training forwards of the model."""
        self._ceased = False
        self._others_then = 0

    def stepped(self, optimizer: Any, own: bool, reached: bool) -> bool:
        """An optimizer steps; `own`: it holds parameters of the model. Returns whether its step is one of this model.

        It is also where it held such parameters before, and gradients have reached the model in this step: then the
        model has lost them (a layer was copied, or made again), and training goes on without effect.
        """
        if own:
            self._steppers.add(optimizer)
            self._own[id(optimizer)] += 1
            self._others_then = self._others.total()
            return True
        self._others[type(optimizer).__name__] += 1
        return reached and optimizer in self._steppers

    def forward_ended(self, output: Any) -> None:
        """A training forward of the model has returned this."""
        if self._graph is None and (node := getattr(first_tensor(output), "grad_fn", None)) is not None:
            node.metadata[KEY] = kept = _Kept()
            self._graph = weakref.ref(kept)

    def unstepped(self, backward: bool) -> str:
        """What to say of a run without any step, although it had many forwards and backward passes; '' otherwise."""
        if not backward or self.forwards < MANY or self._own:
            return ""
        passes = _times(self.forwards, "training forward")
        after = f"After {passes} of {self._model} and backward passes to its parameters"
        if self._others:
            stepped = _times(self._others.total(), "step")
            return f"{after}, {stepped} of optimizers that hold none of them were seen: another model is stepped."
        return f"{after}, no optimizer has stepped."

    def ceased(self, waited: int, passes: int, training: bool) -> str:
        """What to say, once, of a program that computes gradients and no longer steps; '' otherwise.

        waited, passes: forwards and backward passes since the last step. training: the model is in training mode, so
        that these are no gradients that a program looks at after its training. Not where another model is stepped.
        """
        steps = max(self._own.values(), default=0)
        if self._ceased or not steps or not training or min(waited, passes) < MANY:
            return ""
        usual = (self.forwards - waited) / steps
        if waited < max(PART * self.forwards, USUAL * usual) or self._others.total() > self._others_then:
            return ""
        self._ceased = True
        return (
            f"{_times(waited, 'training forward')} of {self._model}, and backward passes to its parameters, came after "
            f"the last step of an optimizer; a step had {usual:.2g} before."
        )

    @property
    def long(self) -> bool:
        """Should there have been a record by now?

        Not where the graph of the first forward is still kept: the program collects outputs for a later backward pass.
        Nor by forwards alone where steps were made before: then it is known that the model is trained.
        """
        if max(self._own.values(), default=0) + self._others.total() >= PATIENCE:
            return True  # there may be an optimizer for each parameter
        collects = self._graph is not None and self._graph() is not None
        return self.forwards >= PATIENCE and not collects and not self._first_step

    def reason(self, backward: bool, noted: str | None, problem: str | None, actions: int = 0) -> str:
        """One sentence, without its full stop.

        backward: a backward pass has reached the parameters. noted: what the hooks noted about the model's calls.
        problem: what is wrong with the model or its optimizer. actions: calls in training mode without gradients.
        """
        if actions and not noted:
            noted = (
                f"the model was called in training mode, but always without gradients ({_times(actions, 'time')}), and "
                "no optimizer step was seen. A training that needs no gradients is not recorded"
            )
        return f"nothing is recorded: {problem}" if problem else f"nothing is recorded: {self._why(backward, noted)}"

    def _why(self, backward: bool, noted: str | None) -> str:
        called = f"{_times(self.forwards, 'training forward')} of {self._model}"
        stepped = _times(self._others.total(), "optimizer step")
        if self._own:
            return f"after {_times(self._own.total(), 'step')} of its optimizers, no step of the training has ended"
        if self._others:
            names = ", ".join(sorted(self._others)[:NAMED])
            return (
                f"after {stepped} ({names}) and {called}, none of the optimizers holds a parameter of this model. "
                "Attach the model whose parameters are trained"
            )
        if self.forwards and backward:
            return (
                f"after {called} and backward passes to its parameters, no optimizer step was seen yet. Where "
                "gradients are accumulated over more forwards than that, records begin with the first step"
            )
        if self.forwards:
            return (
                f"after {called}, no backward pass that reached its parameters and no optimizer step was seen yet. "
                "Where the model is called more often than that before it is trained, records begin with the first step"
            )
        if self._first_step and not noted:
            return (
                "no training forward of the model and no optimizer step was seen after the watch began, which was "
                f"before step {self._first_step}, counted from 0"
            )
        if noted == WITHIN_TRANSFORM:
            return f"{noted}, and no optimizer step was seen. {TO_BE_RECORDED}"
        return noted or (
            "no training forward of the model and no optimizer step was seen: the model was not trained, or it was "
            "compiled and called before `attach`"
        )


class _Kept:
    """Lives as long as the graph that holds it."""


def _times(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
