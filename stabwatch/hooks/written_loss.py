"""A loss that the program writes by itself, `((output - target) ** 2).mean()`, as autograd's graph shows it.

No function is called that could be replaced. The graph says what was subtracted from what; the difference, which it
keeps, and the model's output give the target.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import unseen_by_modes
from stabwatch.hooks.base.graph_kinds import inputs_of, kind_of
from stabwatch.hooks.base.last_function import range_of
from stabwatch.hooks.base.run_accumulators import OVERLAP
from stabwatch.hooks.base.tensors import tensors_in
from stabwatch.hooks.graph import saved_plainly
from stabwatch.hooks.loss_products import overlap, rows_by_columns, shape_of
from stabwatch.hooks.losses import note_broadcast, note_compared, note_reach
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
    beside: a loss function of torch was called as well.
    """

    power: Any
    output: Any
    negated: bool
    given: tuple[int, ...]
    shape: tuple[int, ...]
    alone: bool
    beside: bool

    @property
    def each_with_each(self) -> bool:
        """Is a column of numbers compared with a row of as many?"""
        n = prod(self.given)
        return n > 1 and self.shape == (n, n) and self.given in ((n,), (n, 1)) and kind_of(self.output) in _MADE


_MADE = (
    "Addmm", "Mm", "Linear", "Squeeze", "Select", "Sigmoid", "Tanh", "Relu", "Softplus", "Exp", "Mul", "Add", "Index",
)  # fmt: skip
"""Functions whose result is what a model returns; behind a view each with each may be meant."""


class _Output(NamedTuple):
    """A result of the model: the number of its function, which numbers it may be, and those that it was."""

    number: int
    numbers: Tensor
    version: int
    limits: tuple[float, float] | None


class WrittenLoss:
    """Notes the shapes and the targets of the losses of one model that the program writes by itself."""

    def __init__(self, context: TapContext) -> None:
        self._context = context
        self._outputs: deque[_Output] = deque(maxlen=MOST_OUTPUTS)

    def forward_ended(self, output: Any) -> None:
        """The model has returned this in a step whose losses are looked at."""
        for x in tensors_in(output):
            if x.is_floating_point() and x.grad_fn is not None and x.numel() <= MOST_NUMBERS and not is_fake(x):
                self._outputs.append(_Output(x.grad_fn._sequence_nr(), x.detach(), x._version, range_of(x)))

    def backward_begins(self, roots: Sequence[Tensor]) -> None:
        """A backward pass begins, of whatever model."""
        outputs, self._outputs = list(self._outputs), deque(maxlen=MOST_OUTPUTS)
        if not outputs or len(roots) != 1 or not isinstance(roots[0], Tensor) or roots[0].dim():
            return
        with torch.no_grad(), unseen_by_modes():
            self._note_products(roots[0].grad_fn)
            found = _difference(roots[0].grad_fn)
            kept = None if found is None else _output_of(found, outputs)
            if found is None or kept is None:
                return
            if found.each_with_each:
                note_broadcast(self._context, float(prod(found.given)))
            elif found.shape == found.given:
                self._note(found, kept, roots[0].detach())

    def _note_products(self, root: Any) -> None:
        if (rows := rows_by_columns(root)) is not None:
            note_broadcast(self._context, float(rows))
        if (of_logits := overlap(root)) is not None:
            self._context.run.note(OVERLAP, float(of_logits))

    def _note(self, found: Difference, kept: _Output, loss: Tensor) -> None:
        output = kept.numbers.reshape(found.given)
        difference = next(iter(saved_plainly(found.power, "self")), None)
        if difference is None or difference.shape != output.shape:
            return
        difference = difference.detach()
        target = output + difference if found.negated else output - difference
        note_reach(self._context, kept.limits, target)
        if found.beside:
            return
        squared = difference.square() if kind_of(found.power) == "Pow" else difference.abs()
        whole = found.alone and not scalers_used()
        note_compared(self._context, loss if whole else squared.float().mean(), output, target)


def _difference(root: Any) -> Difference | None:
    """The difference that a loss is made of, near its root."""
    todo, alone, beside = [root] if root is not None else [], True, False
    for node in todo:
        if len(todo) > _NODES:
            return None
        kind, inputs = kind_of(node), inputs_of(node)
        if kind.endswith("Loss") or "CrossEntropy" in kind:
            beside = True
        elif kind in _POWERS and len(inputs) == 1 and kind_of(inputs[0]) in ("Sub", "Rsub"):
            return _of(node, inputs[0], alone, beside) if kind == "Abs" or _exponent(node) == 2 else None
        if kind in _REDUCED:
            alone = alone and len(inputs) == 1
            todo += inputs
    return None


def _exponent(power: Any) -> float | None:
    """None where it is no number."""
    found = getattr(power, "_saved_exponent", None)
    return float(found) if isinstance(found, int | float) else None


def _of(power: Any, difference: Any, alone: bool, beside: bool) -> Difference | None:
    """Of a difference one side of which has no gradient."""
    given = [(i, node, at) for i, (node, at) in enumerate(difference.next_functions) if node is not None]
    shape = shape_of(difference, 0)
    if len(given) != 1 or shape is None:
        return None
    (place, node, at), = given  # fmt: skip
    before = shape_of(node, at)
    negated = (place == 1) != (kind_of(difference) == "Rsub")
    return None if before is None else Difference(power, node, negated, before, shape, alone, beside)


def _output_of(found: Difference, outputs: Sequence[_Output]) -> _Output | None:
    """The output of the model that was compared; None where it was changed on the way, or is not known."""
    node = found.output
    for _ in range(_NODES):
        same = [x for x in outputs if node is not None and x.number == node._sequence_nr()]
        if same:
            fits = same[0].numbers._version == same[0].version and same[0].numbers.numel() == prod(found.given)
            return same[0] if len(same) == 1 and fits else None
        if kind_of(node) not in _LAID_OUT:
            return None
        node = next(iter(inputs_of(node)), None)
    return None
