"""A loss that the program writes by itself, `((output - target) ** 2).mean()`, as autograd's graph shows it.

No function is called that could be replaced. The graph says what was subtracted from what; the difference, which it
keeps, and the model's output give the target.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import unseen_by_modes
from stabwatch.hooks.base.graph_kinds import inputs_of, kind_of
from stabwatch.hooks.base.tensors import tensors_in
from stabwatch.hooks.graph import saved_plainly
from stabwatch.hooks.losses import note_broadcast, note_compared
from stabwatch.hooks.probes.trained_loss import scalers_used
from stabwatch.kernels.where import is_fake

MOST_NUMBERS = 1 << 16
"""Of an output that is kept until its backward pass begins."""
MOST_OUTPUTS = 4
_NODES = 12
"""Functions to look through from the loss to the difference."""
_REDUCED = ("Mean", "Sum", "Mul", "Div", "Neg", "Sqrt", "Add", "View", "Squeeze")
_POWERS = ("Pow", "Abs")
_LAID_OUT = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Select", "Slice", "Unsqueeze")
"""What may lie between an output and the difference; numbers keep their order as long as there are as many of them."""


@dataclass(frozen=True)
class Difference:
    """What the loss takes the square of, or the absolute value.

    power: the node that does so. output: that whose result something was subtracted from, or that was subtracted.
    negated: the latter. given, shape: the shapes of that result and of the difference. alone: it is all of the loss.
    """

    power: Any
    output: Any
    negated: bool
    given: tuple[int, ...]
    shape: tuple[int, ...]
    alone: bool

    @property
    def each_with_each(self) -> bool:
        """Is a column of numbers compared with a row of as many?"""
        n = prod(self.given)
        return n > 1 and self.shape == (n, n) and self.given in ((n,), (n, 1)) and kind_of(self.output) in _MADE


_MADE = (
    "Addmm", "Mm", "Linear", "Squeeze", "Select", "Sigmoid", "Tanh", "Relu", "Softplus", "Exp", "Mul", "Add", "Index",
)  # fmt: skip
"""Functions whose result is what a model returns; behind a view each with each may be meant."""


class WrittenLoss:
    """Notes the shapes and the targets of the losses of one model that the program writes by itself."""

    def __init__(self, context: TapContext) -> None:
        self._context = context
        self._outputs: deque[tuple[int, Tensor, int]] = deque(maxlen=MOST_OUTPUTS)

    def forward_ended(self, output: Any) -> None:
        """The model has returned this in a step whose losses are looked at."""
        for x in tensors_in(output):
            if x.is_floating_point() and x.grad_fn is not None and x.numel() <= MOST_NUMBERS and not is_fake(x):
                self._outputs.append((x.grad_fn._sequence_nr(), x.detach(), x._version))

    def backward_begins(self, roots: Sequence[Tensor]) -> None:
        """A backward pass begins, of whatever model."""
        outputs, self._outputs = list(self._outputs), deque(maxlen=MOST_OUTPUTS)
        if not outputs or len(roots) != 1 or not isinstance(roots[0], Tensor) or roots[0].dim():
            return
        found = _difference(roots[0].grad_fn)
        kept = None if found is None else _output_of(found, outputs)
        if found is None or kept is None:
            return
        with torch.no_grad(), unseen_by_modes():
            if found.each_with_each:
                note_broadcast(self._context, float(prod(found.given)))
            elif found.shape == found.given:
                self._note(found, kept.reshape(found.given), roots[0].detach())

    def _note(self, found: Difference, output: Tensor, loss: Tensor) -> None:
        difference = next(iter(saved_plainly(found.power, "self")), None)
        if difference is None or difference.shape != output.shape:
            return
        difference = difference.detach()
        target = output + difference if found.negated else output - difference
        squared = difference.square() if kind_of(found.power) == "Pow" else difference.abs()
        whole = found.alone and not scalers_used()
        note_compared(self._context, loss if whole else squared.float().mean(), output, target)


def _difference(root: Any) -> Difference | None:
    """The difference that a loss is made of, near its root; None where a loss function of torch was called."""
    todo, alone = [root] if root is not None else [], True
    for node in todo:
        if len(todo) > _NODES:
            return None
        kind, inputs = kind_of(node), inputs_of(node)
        if kind.endswith("Loss") or "CrossEntropy" in kind:
            return None
        if kind in _POWERS and len(inputs) == 1 and kind_of(inputs[0]) in ("Sub", "Rsub"):
            return _of(node, inputs[0], alone) if kind == "Abs" or _exponent(node) == 2 else None
        if kind in _REDUCED:
            alone = alone and len(inputs) == 1
            todo += inputs
    return None


def _exponent(power: Any) -> float | None:
    """None where it is no number."""
    found = getattr(power, "_saved_exponent", None)
    return float(found) if isinstance(found, int | float) else None


def _of(power: Any, difference: Any, alone: bool) -> Difference | None:
    """Of a difference one side of which has no gradient."""
    given = [(i, node, at) for i, (node, at) in enumerate(difference.next_functions) if node is not None]
    shape = _shape(difference, 0)
    if len(given) != 1 or shape is None:
        return None
    (place, node, at), = given  # fmt: skip
    before = _shape(node, at)
    negated = (place == 1) != (kind_of(difference) == "Rsub")
    return None if before is None else Difference(power, node, negated, before, shape, alone)


def _shape(node: Any, at: int) -> tuple[int, ...] | None:
    """Of the result of a node, where this version of torch says it."""
    known = getattr(node, "_input_metadata", ())
    return tuple(known[at].shape) if at < len(known) else None


def _output_of(found: Difference, outputs: Sequence[tuple[int, Tensor, int]]) -> Tensor | None:
    """The output of the model that was compared; None where it was changed on the way, or is not known."""
    node = found.output
    for _ in range(_NODES):
        same = [(x, version) for number, x, version in outputs if node is not None and number == node._sequence_nr()]
        if same:
            (x, version), n = same[0], prod(found.given)
            return x if len(same) == 1 and x._version == version and x.numel() == n else None
        if kind_of(node) not in _LAID_OUT:
            return None
        node = next(iter(inputs_of(node)), None)
    return None
