"""The last function that made an output, as autograd's graph has it."""

from __future__ import annotations

import math
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
    """Between which numbers an output lies, by the last function that made it; None where that is not known."""
    return _RANGES.get(_last_function(output))


def is_linear(output: Tensor) -> bool:
    """Was an output made by a linear layer, whose numbers have no bounds?"""
    return _last_function(output) in _LINEAR


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


def _last_function(output: Tensor) -> str:
    """The kind of the last function that made the numbers of an output; '' where that is not known."""
    node: Any = output.grad_fn
    for _ in range(_DEEP):
        kind = kind_of(node)
        if kind not in _SAME:
            return kind
        node = next(iter(inputs_of(node)), None)
    return ""
