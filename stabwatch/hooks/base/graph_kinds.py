"""Kinds of nodes in the graph that autograd keeps."""

from __future__ import annotations

from typing import Any

SHAPES = (
    "View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "Expand", "Unsqueeze", "Squeeze", "T", "Slice",
    "Select", "Split", "SplitWithSizes", "Unbind", "Clone", "ToCopy", "Alias",
)  # fmt: skip
"""Operations that only lay out the same numbers in another way."""


def kind_of(node: Any) -> str:
    """`View` of a `ViewBackward0`."""
    return "" if node is None else str(node.name()).partition("Backward")[0]


def inputs_of(node: Any) -> list[Any]:
    """The nodes whose results an operation took; what needs no gradient has none."""
    return [following for following, _ in node.next_functions if following is not None]
