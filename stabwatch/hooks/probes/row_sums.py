"""The sums of attention weights over the keys, where they are not those of a softmax: scaled, shifted, of another kind.

The weights are what the values were multiplied with: found behind the output of the module, in the graph that autograd
keeps, and read from there. Of a softmax each row adds up to one, which need not be measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.base.attention_output import AttentionOutput
from stabwatch.hooks.base.graph_kinds import SHAPES, inputs_of, kind_of
from stabwatch.hooks.base.probe import PROBES, Probe, on
from stabwatch.hooks.probes.attention import NO_GRADIENT, PACKED, saved_values_are_packed
from stabwatch.kernels.merge import Aggregates
from stabwatch.signals.reductions import ATTENTION_ROW_SUM

ROWS, HEADS = 64, 64
"""Query rows, evenly spread, and heads (of all samples together) whose weights are added up."""
NORMALISED = ""
"""No reason to tell: each row adds up to one."""
STATE = (
    "it adds up keys and values before a query reads them (linear attention): no key has a weight of its own, so there "
    "is no sink, no concentration and no row of weights"
)
NOT_FOUND = "no product of weights and values was found behind its output"
_NODES = 48
_AFTER = (*SHAPES, "Mm", "Addmm", "Mul", "Div", "Add", "NativeDropout")
"""Operations between the product with the values and the output: the heads put together, a projection, a gate."""
_SCALED = ("Mul", "Div", "Add", "Sub")
_CUT = ("MaskedFill", "Where", "Tril", "Triu", "Clamp")
"""What takes single weights out after the softmax: their row adds up to less."""
_DENSITIES = ("Softmax", "SafeSoftmax")
_POINTWISE = ("Sigmoid", "Relu", "Silu", "Gelu", "Softplus", "Exp", "Pow", "Tanh", "Elu")
"""Functions of single scores that stand in place of a softmax."""
_SCORES = ("Bmm", "Baddbmm")
_OF_SCORES = (*SHAPES, *_SCALED, *_POINTWISE, "MaskedFill", "Where")
_FUSED = "ScaledDotProduct"
"""What the nodes of all fused kernels begin with."""


def row_sums(x: AttentionOutput) -> Aggregates | None:
    """Sum, largest and smallest of the sums of weights of some rows."""
    weights, why = _weights(x)
    if weights is None:
        if why:
            x.site.context.unmeasured(ROW_SUM.report_key, x.site.name, why)
        return None
    some = weights[:HEADS, :: max(1, weights.shape[1] // ROWS)].detach().float().sum(dim=-1)
    return torch.stack((torch.full_like(some.sum(), some.numel()), some.sum(), some.amax(), some.amin()))


def _weights(x: AttentionOutput) -> tuple[Tensor | None, str]:
    """(heads, queries, keys), or None and the reason."""
    if x.output.grad_fn is None:
        return None, NO_GRADIENT
    before = [part.grad_fn for part in x.inputs if isinstance(part, Tensor)]
    product, _ = _first(x.output.grad_fn, ("Bmm", _FUSED), _AFTER, before)
    if product is None:
        return None, NOT_FOUND
    if kind_of(product).startswith(_FUSED):
        return None, NORMALISED
    if saved_values_are_packed():
        return None, PACKED
    left, right = product.next_functions[0][0], product.next_functions[-1][0]
    if _first(right, (*_SCORES, "Cumsum"), (*SHAPES, "Mul", "Div", "Sum"))[0] is not None:
        return None, STATE
    function, changed = _first(left, (*_DENSITIES, *_POINTWISE), (*SHAPES, *_SCALED, *_CUT, "NativeDropout"))
    if function is None:
        return None, NOT_FOUND
    if kind_of(function) in _DENSITIES and not changed:
        return None, NORMALISED
    if kind_of(function) in _POINTWISE and _first(function, _SCORES, _OF_SCORES)[0] is None:
        return None, NOT_FOUND  # of no scores: the features of a linear attention, say
    found = getattr(product, "_saved_self", None)
    return (found, "") if isinstance(found, Tensor) and found.dim() == 3 else (None, NOT_FOUND)


def _first(node: Any, wanted: Iterable[str], through: Iterable[str], but: Iterable[Any] = ()) -> tuple[Any, bool]:
    """The nearest node of a wanted kind behind those of the kinds `through`; and whether weights change on the way."""
    waiting = [(node, False)]
    for _ in range(_NODES):
        if not waiting:
            break
        node, changed = waiting.pop(0)
        if node is None or any(node is other for other in but):
            continue
        kind = kind_of(node)
        if kind in wanted or (_FUSED in wanted and kind.startswith(_FUSED)):
            return node, changed
        if kind in through:
            changed = changed or _changes(node)
            waiting += [(following, changed) for following in inputs_of(node)]
    return None, False


def _changes(node: Any) -> bool:
    """Does it change the sums of weights? A matrix of fixed factors is the mask of dropout: not on average."""
    kind = kind_of(node)
    if kind not in _SCALED:
        return kind in _CUT
    factor = getattr(node, "_saved_other", None)
    mask = isinstance(factor, Tensor) and factor.dim() > 1 and min(factor.shape[-2:]) > 1
    return kind in ("Add", "Sub") or len(inputs_of(node)) > 1 or not mask


ROW_SUM = PROBES.register(
    Probe(
        name="attention_row_sum", tap="attention", reduction=ATTENTION_ROW_SUM, tier="deep",
        compute=on(AttentionOutput, row_sums), optional=True, graph_safe=False,
    )
)  # fmt: skip
