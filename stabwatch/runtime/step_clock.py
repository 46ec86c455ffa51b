"""The step clock: which calls of `optimizer.step()` make up one step of the run."""

from __future__ import annotations

from typing import Any
from weakref import ref


class StepClock:
    """A step ends when every optimizer of the model has stepped.

    Which they are is given, or learned from the first step: then a step ends when the next forward begins
    after some optimizer stepped, or when an optimizer steps again. None of this holds once the training loop says
    itself when a step begins (`numbered`): then only that ends the step before.
    """

    def __init__(self, optimizer: Any = None) -> None:
        given = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        # wrappers such as Accelerate's hold the optimizer that really steps
        self._known = {id(getattr(o, "optimizer", o)) for o in given}
        self._begun: list[ref[Any]] = []
        self._stepped: set[int] = set()
        self._moved = self._skipped = False
        self.numbered = False

    def repeats(self, optimizer: Any) -> bool:
        """True if this optimizer has stepped already in the open step, which is over then."""
        return not self.numbered and id(optimizer) in self._stepped

    def begins(self, optimizer: Any) -> bool:
        """Note that a step of an optimizer begins.

        False inside the step of another optimizer (ZeroRedundancyOptimizer has one inside): it is part of that step.
        """
        self._begun = [begun for begun in self._begun if begun() is not None]
        self._leave(optimizer)  # its last step raised
        self._begun.append(ref(optimizer))
        return len(self._begun) == 1

    def began(self, optimizer: Any) -> bool:
        """Asked when a step of an optimizer has ended: was its beginning seen, outside of other steps?

        Not if `attach` was called inside it.
        """
        return self._leave(optimizer) and not self._begun

    def _leave(self, optimizer: Any) -> bool:
        """End a step and those inside it that raised; False if it is not open."""
        places = [i for i, begun in enumerate(self._begun) if begun() is optimizer]
        if places:
            del self._begun[places[0] :]
        return bool(places)

    def stepped(self, optimizer: Any) -> bool:
        """Note a step of an optimizer; True if that completes the step of the run."""
        self._stepped.add(id(optimizer))
        self._moved = True
        return not self.numbered and bool(self._known) and self._stepped >= self._known

    def skipped(self) -> None:
        """Note that the gradient scaler has skipped this step."""
        self._skipped = True

    def open_step_is_over(self) -> bool:
        """Has anything stepped, or been skipped, since the last step was closed?"""
        return bool(self._stepped) or self._skipped

    def forward_ends_step(self) -> bool:
        """Asked when a forward begins: does it belong to the next step?"""
        return not self.numbered and self.open_step_is_over()

    def stepped_since_update(self) -> bool:
        """Asked once per update of a gradient scaler: did any optimizer step since the last time?"""
        moved, self._moved = self._moved, False
        return moved

    def close(self) -> None:
        """Begin a new step."""
        if not self._known:
            self._known = set(self._stepped)
        self._stepped.clear()
        self._skipped = False
