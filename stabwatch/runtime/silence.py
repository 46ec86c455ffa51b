"""Why a run has no records: said once after some steps or forwards, and again at its end."""

from __future__ import annotations

from collections import Counter
from typing import Any

PATIENCE = 10
"""Steps of optimizers, or training forwards of the model, by which there should be a record."""
NAMED = 3
"""Optimizers that a sentence names."""


class Silence:
    """Counts what was seen of a training that has no record yet."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._others: Counter[str] = Counter()
        self._own = 0
        self.forwards = 0
        """Training forwards of the model."""

    def stepped(self, optimizer: Any, own: bool) -> None:
        """An optimizer steps; `own`: it holds parameters of the model."""
        if own:
            self._own += 1
        else:
            self._others[type(optimizer).__name__] += 1

    @property
    def long(self) -> bool:
        """Should there have been a record by now?"""
        return self.forwards >= PATIENCE or self._own + self._others.total() >= PATIENCE

    def reason(self, backward: bool, noted: str | None, problem: str | None) -> str:
        """One sentence, without its full stop.

        backward: a backward pass has reached the parameters. noted: what the hooks noted about the model's calls.
        problem: what is wrong with the model or its optimizer.
        """
        return f"nothing is recorded: {problem}" if problem else f"nothing is recorded: {self._why(backward, noted)}"

    def _why(self, backward: bool, noted: str | None) -> str:
        called = f"{_times(self.forwards, 'training forward')} of {self._model}"
        stepped = _times(self._others.total(), "optimizer step")
        if self._own:
            return f"after {_times(self._own, 'step')} of its optimizers, no step of the training has ended"
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
            return f"after {called}, no backward pass that reached its parameters and no optimizer step was seen"
        return noted or (
            "no training forward of the model and no optimizer step was seen: the model was not trained, or it was "
            "compiled and called before `attach`"
        )


def _times(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
