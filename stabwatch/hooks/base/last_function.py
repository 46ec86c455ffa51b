"""The last function that made an output, as autograd's graph has it."""

from __future__ import annotations

import math

from torch import Tensor

_RANGES = {
    "SigmoidBackward0": (0.0, 1.0), "SoftmaxBackward0": (0.0, 1.0), "TanhBackward0": (-1.0, 1.0),
    "ReluBackward0": (0.0, math.inf), "SoftplusBackward0": (0.0, math.inf), "ExpBackward0": (0.0, math.inf),
    "LogSoftmaxBackward0": (-math.inf, 0.0),
}  # fmt: skip
_LINEAR = ("AddmmBackward0", "MmBackward0", "BmmBackward0", "ConvolutionBackward0")
_SHAPES = frozenset(
    f"{name}Backward0"
    for name in (
        "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Transpose", "Permute", "T",
        "Clone", "Index", "Alias",
    )
) | {"SqueezeBackward1"}  # fmt: skip
"""What changes the shape of numbers, and not the numbers."""
_DEEP = 6


def range_of(output: Tensor) -> tuple[float, float] | None:
    """Between which numbers an output lies, by the last function that made it; None where that is not known."""
    return _RANGES.get(_last_function(output))


def is_linear(output: Tensor) -> bool:
    """Was an output made by a linear layer, whose numbers have no bounds?"""
    return _last_function(output) in _LINEAR


def _last_function(output: Tensor) -> str:
    """Name of the node of the last function that made the numbers of an output; '' where that is not known."""
    node = output.grad_fn
    for _ in range(_DEEP):
        name = type(node).__name__
        if name not in _SHAPES:
            return name
        node = node.next_functions[0][0]  # type: ignore[union-attr]
    return ""
