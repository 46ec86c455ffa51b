"""The step clock: which calls of `optimizer.step()` make up one step of the run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

WRAPPED = ("optimizer", "base_optimizer", "_optimizer", "optim", "base", "opt")
"""Attributes in which wrappers keep the optimizer that really steps."""
_FILE = Optimizer.profile_hook_step.__code__.co_filename
REPLACED = 2
"""Steps without any of the known optimizers, after which those that step now take their place."""


class StepClock:
    """A step ends when every optimizer of the model has stepped.

    Which they are is given, or learned from the first step: then a step ends when the next forward begins
    after some optimizer stepped, or when an optimizer steps again. Of optimizers that step inside each other (a wrapper
    that is an optimizer itself, a subclass that calls `super().step()`) the outermost one counts. Optimizers that step
    during the backward pass make a step that ends when the next forward or backward pass begins. None of this holds
    once the training loop says itself when a step begins (`numbered`): then only that ends the step before.
    """

    def __init__(self, optimizer: Any = None) -> None:
        given = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        self._known = [frozenset(map(id, chain(o))) for o in given]
        self._stepped: set[int] = set()
        self._open: list[Any] = []
        self._moved = self._skipped = False
        self._unknown = 0
        self.numbered = False
        self.in_backward = False
        """The optimizers of the open step stepped during a backward pass."""

    @property
    def inside(self) -> Any:
        """The outermost optimizer that is stepping now, or None."""
        return self._open[0] if self._open else None

    def enters(self, optimizer: Any) -> bool:
        """An optimizer begins to step; True if it is not inside the step of another one, or of its own."""
        if self._open:
            running = _running()
            self._open = [o for o in self._open if id(o) in running and not (o is optimizer and running[id(o)] < 2)]
        self._open.append(optimizer)
        return len(self._open) == 1

    def leaves(self, optimizer: Any) -> bool:
        """It has stepped; True if that was the outermost step, and its beginning was seen."""
        if not any(o is optimizer for o in self._open):
            return False  # `attach` was called inside this step
        while self._open.pop() is not optimizer:
            pass  # a step inside it has raised an error
        return not self._open

    def repeats(self, optimizer: Any) -> bool:
        """True if this optimizer has stepped already in the open step, which is over then."""
        return not self.numbered and id(optimizer) in self._stepped

    def stepped(self, optimizer: Any, in_backward: bool = False) -> bool:
        """Note a step of an optimizer; True if that completes the step of the run."""
        self._stepped.add(id(optimizer))
        self._moved = True
        self.in_backward = in_backward
        complete = bool(self._known) and all(ids & self._stepped for ids in self._known)
        return complete and not in_backward and not self.numbered

    def open_step_is_over(self) -> bool:
        """Has anything stepped, or been skipped, since the last step was closed?"""
        return (bool(self._stepped) or self._skipped) and not self._open

    def skipped(self) -> None:
        """Note that the gradient scaler has skipped this step."""
        self._skipped = True

    def forward_ends_step(self) -> bool:
        """Asked when a forward begins: does it belong to the next step?"""
        return not self.numbered and self.open_step_is_over()

    def stepped_since_update(self) -> bool:
        """Asked once per update of a gradient scaler: did any optimizer step since the last time?"""
        moved, self._moved = self._moved, False
        return moved

    def others(self, optimizers: set[int]) -> bool:
        """Are these the ids of optimizers of another run?"""
        return bool(optimizers and self._known) and not any(ids & optimizers for ids in self._known)

    def close(self) -> None:
        """Begin a new step."""
        if self._stepped:
            known = any(ids & self._stepped for ids in self._known)
            self._unknown = 0 if known else self._unknown + 1
            if not self._known or self._unknown > REPLACED:
                self._known = [frozenset((one,)) for one in self._stepped]
        self._stepped.clear()
        self.in_backward = self._skipped = False


def chain(optimizer: Any) -> list[Any]:
    """An optimizer and those that it wraps, from the outside to the inside."""
    found = [optimizer]
    for one in found:
        inner = [vars(one).get(name) for name in WRAPPED] if hasattr(one, "__dict__") else []
        found += [o for o in inner if hasattr(o, "step") and not any(o is known for known in found)]
    return found


def torch_optimizers(given: Any) -> Iterable[Optimizer]:
    """The torch optimizers among what was given to `attach`, also inside wrappers."""
    several = given if isinstance(given, list | tuple) else [given]
    return [o for one in several for o in chain(one) if isinstance(o, Optimizer) and hasattr(o, "param_groups")]


def _running() -> dict[int, int]:
    """How often each optimizer occurs on the call stack, by id: a step that raised an error is there no more."""
    found: dict[int, int] = {}
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "wrapper" and frame.f_code.co_filename == _FILE:
            stepping = frame.f_locals.get("self", next(iter(frame.f_locals.get("args", ())), None))
            found[id(stepping)] = found.get(id(stepping), 0) + 1
    return found
