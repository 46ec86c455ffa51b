"""Is a model linear although it has several layers? Read from autograd's graph of its output."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stabwatch.hooks.base.graph_kinds import SHAPES, inputs_of, kind_of

LAYERS = ("Addmm", "Mm", "Convolution")
"""Kinds of linear layers."""
_KEEPS = frozenset(
    (
        *SHAPES, "Add", "Sub", "Neg", "Mul", "Div", "Mean", "Sum", "AvgPool2D", "AdaptiveAvgPool2D", "NativeDropout",
        "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm",
    )
)  # fmt: skip
"""What leaves a linear function of one input linear, in evaluation mode."""
_DEEP = 256
"""Most nodes that are looked at."""


def linear_layers(output: Tensor) -> int:
    """How many linear layers lie one behind the other from the output to the input, with nothing between.

    0 where other functions do, a layer between is narrower than both ends, as those of a factorisation are, and
    where several paths lead to the output.
    """
    node: Any = output.grad_fn
    shapes: list[tuple[int, int]] = []
    for _ in range(_DEEP):
        if node is None or (kind := kind_of(node)) == "Embedding":
            return 0 if _is_factorised(shapes) else len(shapes)
        inputs = [(following, parameter_of(following)) for following in inputs_of(node)]
        paths = [following for following, parameter in inputs if parameter is None]
        matrices = [parameter for _, parameter in inputs if parameter is not None and parameter.dim() > 1]
        if len(paths) > 1 or (kind not in _KEEPS if kind not in LAYERS else len(matrices) != 1):
            return 0
        shapes += [(len(matrix), matrix.shape[1]) for matrix in matrices if kind in LAYERS]
        node = paths[0] if paths else None
    return 0


def parameter_of(node: Any) -> Tensor | None:
    """The leaf that a node only lays out; None where it computes something."""
    for _ in range(_DEEP):
        if hasattr(node, "variable"):
            leaf: Tensor = node.variable
            return leaf
        following = inputs_of(node)
        if kind_of(node) not in SHAPES or len(following) != 1:
            return None
        node = following[0]
    return None


def _is_factorised(shapes: list[tuple[int, int]]) -> bool:
    """Is a layer between narrower than both ends? shapes: outputs and inputs of the layers, the last layer first."""
    between = [inputs for _, inputs in shapes[:-1]]
    return bool(between) and min(between) < min(shapes[0][0], shapes[-1][1])
