"""Is a softmax that of attention? Decided by where its input comes from, in the graph that autograd keeps.

Scores of attention are products of two activations. A vocabulary, a router or a gate multiplies with a parameter.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stabwatch.hooks.base.graph_kinds import SHAPES, kind_of
from stabwatch.hooks.base.sites import Site

_SHAPES = (*SHAPES, "Mul", "Div")
"""Operations behind which an operand of a product is the same parameter or the same activation."""
_ELEMENTWISE = (*_SHAPES, "Add", "Sub", "MaskedFill", "Where", "Tanh", "Clamp", "Maximum", "Relu", "LeakyRelu")
"""Operations between the product and the softmax: scale, bias, mask, cap."""
_BATCHED = ("Bmm", "Baddbmm")
_FLAT = ("Mm", "Addmm", "Linear")
_NODES = 48
"""Nodes of the graph to look at."""


def is_attention(site: Site, scores: Tensor) -> bool:
    """Are these, (..., T, S), scores of attention? Where the graph does not say, what the calling module looks like."""
    if scores.dim() < 2:
        return False
    found = _is_product_of_activations(scores)
    if scores.dim() == 2:
        return bool(found) and site.attention_like
    return site.attention_like if found is None else found


def _is_product_of_activations(scores: Tensor) -> bool | None:
    """None if the graph does not say, as in layers that are frozen or computed without one."""
    waiting: list[Any] = [scores.grad_fn]
    squeezed = False
    for _ in range(_NODES):
        if not waiting:
            return None
        node = waiting.pop(0)
        kind = kind_of(node)
        if kind in _BATCHED or (kind in _FLAT and scores.dim() == 2):
            operands = [_is_activation(operand) for operand, _ in node.next_functions[-2:]]
            return False if False in operands else None if None in operands else True
        if kind in _FLAT:
            return None if squeezed else False  # additive attention: a projection to one number per pair
        squeezed = squeezed or kind == "Squeeze"
        if kind in _ELEMENTWISE:
            waiting += [following for following, _ in node.next_functions if following is not None]
    return None


def _is_activation(node: Any) -> bool | None:
    """False for a parameter; None for a tensor that needs no gradient."""
    for _ in range(_NODES):
        kind = kind_of(node)
        if kind not in _SHAPES:
            break
        node = next((following for following, _ in node.next_functions if following is not None), None)
    return None if node is None else kind != "AccumulateGrad"
