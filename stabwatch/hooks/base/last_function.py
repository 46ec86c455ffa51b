"""The last function that made an output, as autograd's graph has it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from stabwatch.hooks.base.graph_kinds import SHAPES, inputs_of, kind_of

_RANGES = {
    "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0),
    "Relu": (0.0, math.inf), "Softplus": (0.0, math.inf), "Exp": (0.0, math.inf),
    "LogSoftmax": (-math.inf, 0.0),
}  # fmt: skip
_LINEAR = ("Addmm", "Mm", "Bmm", "Convolution")
_SAME = frozenset((*SHAPES, "Index"))
"""What takes numbers as they are, and lays them out."""
_VIEWS = ("View", "UnsafeView", "ReshapeAlias")
_DEEP = 6


def range_of(output: Tensor) -> tuple[float, float] | None:
    """Between which numbers an output lies, by the last functions that made it; None where that is not known."""
    return _range_of(output.grad_fn)


def _range_of(node: Any) -> tuple[float, float] | None:
    """A sigmoid of what is bounded itself, by a ReLU or another sigmoid, has closer bounds than its own."""
    node = _function(node)
    limits, rises = _RANGES.get(kind_of(node)), _RISING.get(kind_of(node))
    before = _range_of(next(iter(inputs_of(node)), None)) if rises else None
    return limits if rises is None or before is None else (rises(before[0]), rises(before[1]))


def _sigmoid(x: float) -> float:
    return 0.5 + 0.5 * math.tanh(x / 2)


_RISING: dict[str, Callable[[float], float]] = {"Sigmoid": _sigmoid, "Tanh": math.tanh}


def is_linear(output: Tensor) -> bool:
    """Was an output made by a linear layer, whose numbers have no bounds?"""
    return kind_of(_function(output.grad_fn)) in _LINEAR


def is_sum_of_products(node: Any) -> bool:
    """Is this, of the graph, what a linear layer has computed?"""
    return kind_of(node) in _LINEAR


def starts_late(logits: Tensor) -> bool:
    """Were places at the beginning of logits cut off? Then those that are left do not stand at their own."""
    node: Any = logits.grad_fn
    for _ in range(_DEEP):
        if kind_of(node) not in _SAME:
            return False
        if kind_of(node) == "Slice" and node._saved_start and node._saved_dim:
            return True
        node = next(iter(inputs_of(node)), None)
    return False


def is_scrambled(logits: Tensor) -> bool:
    """Were logits of (batch, places, classes) laid out as (batch, classes, places) by `view` in place of `transpose`?

    Then the numbers stay in their order, and each class of a place is taken for another class of another place.
    """
    node: Any = logits.grad_fn
    while kind_of(node) == "ToCopy":
        node = next(iter(inputs_of(node)), None)
    before, after = tuple(getattr(node, "_saved_self_sym_sizes", ())), tuple(logits.shape)
    if kind_of(node) not in _VIEWS or len(before) < 3 or before[0] != after[0]:
        return False
    return after[1:] == (before[-1], *before[1:-1]) != before[1:]


def _function(node: Any) -> Any:
    """The last function that made the numbers of an output; None where that is not known."""
    for _ in range(_DEEP):
        if kind_of(node) not in _SAME:
            return node
        node = next(iter(inputs_of(node)), None)
    return None
