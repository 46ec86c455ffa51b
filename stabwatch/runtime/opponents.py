"""Is a model trained against others? What one objective of a loop gives to the optimizer of another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor, nn

from stabwatch.hooks.base.tensors import first_tensor

ALONE = 8
"""Phases after which an optimizer that is the only one is looked at no more."""
KNOWN = 8
"""Most optimizers that are remembered."""


@dataclass
class _Trained:
    """An optimizer that steps, the place of one of its parameters, and the optimizers that stepped together with it.

    own: it trains the watched model.

    The parameter itself is not referred to: `torch.utils.swap_tensors`, and so `Module.to` where it swaps, refuses a
    tensor that has a weak reference.
    """

    optimizer: ReferenceType[Any]
    place: tuple[int, int]
    own: bool = False
    together: frozenset[int] = frozenset()
    before: tuple[int, int] = (0, 0)

    def witness(self) -> nn.Parameter | None:
        """The parameter; None if the optimizer is gone or holds fewer now."""
        groups = getattr(self.optimizer(), "param_groups", [])
        group, index = self.place
        params = groups[group]["params"] if group < len(groups) else []
        return params[index] if index < len(params) else None


class Opponents:
    """Follows the phases of a training loop: backward passes, and then the steps of one optimizer or several.

    A phase whose backward passes reach the model, and that gives gradients to an optimizer that steps in phases of its
    own alone, is one of a game: a generator's loss goes through the discriminator, an actor's through its critic. One
    objective for several optimizers is one phase. Where a loop freezes one side meanwhile, that shows too: a frozen
    model is reached where its output needs a gradient.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Trained] = {}
        self._phase: set[int] = set()
        self._given: set[int] = set()
        self._reached = self._through = self._found = False
        self._phases = 0

    def forward_ended(self, output: Any) -> None:
        """The model was called: does a gradient go through it while its parameters are frozen?"""
        if self._looks and not self._through:
            own = [p for one in self._known.values() if one.own and (p := one.witness()) is not None]
            value = first_tensor(output) if own and not any(p.requires_grad for p in own) else None
            self._through = value is not None and value.requires_grad

    def backward_begins(self) -> None:
        """A backward pass begins: the first one after a step begins a phase."""
        if self._phase:
            self._close()
        if self._looks:
            for one in self._known.values():
                one.before = _gradient(one.witness())

    def backward_ended(self, reached: bool) -> None:
        """It has ended; `reached`: parameters of this model got gradients."""
        self._reached |= reached or self._through
        self._through = False
        for key, one in self._known.items() if self._looks else ():
            parameter = one.witness()
            if parameter is not None and (not parameter.requires_grad or _gradient(parameter) != one.before):
                self._given.add(key)

    def stepped(self, optimizer: Any, own: bool) -> None:
        """An optimizer of this model (`own`) or of another one steps."""
        self._phase.add(id(optimizer))
        known = self._known.get(id(optimizer))
        if len(self._known) < KNOWN if known is None else known.optimizer() is not optimizer:
            groups = enumerate(optimizer.param_groups)
            places = ((g, i) for g, group in groups for i, p in enumerate(group["params"]) if p.grad is not None)
            place = next(places, None)
            if place is not None:
                together = frozenset() if known is None else known.together
                self._known[id(optimizer)] = _Trained(ref(optimizer), place, own, together)

    @property
    def _looks(self) -> bool:
        """One optimizer that was alone for a while has no opponent, until another one steps."""
        return len(self._known) > 1 or self._phases < ALONE

    def _close(self) -> None:
        self._phases += 1
        phase = frozenset(self._phase)
        if self._given:
            others = (self._known[key].together for key in self._given - phase)
            self._found |= self._reached and any(theirs and not theirs & phase for theirs in others)
        for key in phase & self._known.keys():
            self._known[key].together = phase
        self._phase.clear()
        self._given.clear()
        self._reached = False

    def take(self) -> bool:
        """Was there such a phase since this was last asked?"""
        found, self._found = self._found, False
        return found


def _gradient(parameter: nn.Parameter | None) -> tuple[int, int]:
    grad: Tensor | None = None if parameter is None else parameter.grad
    return (0, 0) if grad is None else (id(grad), grad._version)
