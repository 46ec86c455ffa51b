"""Gradients that FSDP2 keeps for itself while micro-batches are accumulated without communication.

After `set_requires_gradient_sync(False)` a backward pass leaves the parameters of the model without a gradient. It is
kept whole, beside the parameter, until a pass that communicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def holders(model: nn.Module) -> dict[int, Any]:
    """What keeps the gradient of each parameter that `fully_shard` has sharded, by the parameter's id."""
    found: dict[int, Any] = {}
    for module in model.modules():
        state = getattr(module, "_get_fsdp_state", None)
        groups = [] if state is None else _groups(state())
        found.update((id(each.sharded_param), each) for group in groups for each in group.fsdp_params)
    return found


def _groups(state: Any) -> list[Any]:
    several = getattr(state, "_fsdp_param_groups", None)
    group = getattr(state, "_fsdp_param_group", None)
    return list(several) if several else [group] if group is not None else []


def gradient(p: nn.Parameter, kept_by: Mapping[int, Any]) -> Tensor | None:
    """The gradient that is accumulated for a parameter now: what is kept for it, or else its own."""
    holder = kept_by.get(id(p))
    if holder is None:
        return p.grad
    kept: Tensor | None = getattr(holder, "unsharded_accumulated_grad", None)
    if kept is None:
        kept = getattr(getattr(holder, "_unsharded_param", None), "grad", None)
    return p.grad if kept is None else kept
