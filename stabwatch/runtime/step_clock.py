"""The step clock: which calls of `optimizer.step()` make up one step of the run."""

from __future__ import annotations

from typing import Any


class StepClock:
    """A step ends when every optimizer of the model has stepped.

    Which they are is given, or learned from the first step: then a step ends when the next forward begins
    after some optimizer stepped, or when an optimizer steps again.
    """

    def __init__(self, optimizer: Any = None) -> None:
        given = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        # wrappers such as Accelerate's hold the optimizer that really steps
        self._known = {id(getattr(o, "optimizer", o)) for o in given}
        self._stepped: set[int] = set()
        self._moved = False

    def repeats(self, optimizer: Any) -> bool:
        """True if this optimizer has stepped already in the open step, which is over then."""
        return id(optimizer) in self._stepped

    def stepped(self, optimizer: Any) -> bool:
        """Note a step of an optimizer; True if that completes the step of the run."""
        self._stepped.add(id(optimizer))
        self._moved = True
        return bool(self._known) and self._stepped >= self._known

    def open_step_is_over(self) -> bool:
        """Asked when a forward begins: has anything stepped since the last step was closed?"""
        return bool(self._stepped)

    def stepped_since_update(self) -> bool:
        """Asked once per update of a gradient scaler: did any optimizer step since the last time?"""
        moved, self._moved = self._moved, False
        return moved

    def close(self) -> None:
        """Begin a new step."""
        if not self._known:
            self._known = set(self._stepped)
        self._stepped.clear()
