"""Small functions on tensors and modules that all hooks share."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.kernels.merge import empty_accumulator
from stabwatch.signals.reductions import REDUCTIONS

PARTIAL = "each rank has a summand of it (a DTensor with a Partial placement), and adding them up is a collective"
"""Why nothing is measured of such a tensor."""
DICTIONARIES = (dict, UserDict)
"""What holds tensors by name: what tokenizers of transformers return is a UserDict."""
NESTED = 4
"""Containers in containers that are searched for tensors."""


def tensors_in(x: Any, depth: int = NESTED, most: int | None = None) -> Iterator[Tensor]:
    """The tensors in inputs or outputs: in lists, tuples and dictionaries, and in those inside them.

    depth: how far inside. most: members of each of them that are looked at; None for all.
    """
    if isinstance(x, Tensor):
        yield x
    elif depth and isinstance(x, (list, tuple, *DICTIONARIES)):
        for item in islice(x.values() if isinstance(x, DICTIONARIES) else x, most):
            yield from tensors_in(item, depth - 1, most)


def local(tensor: Any) -> Tensor:
    """This rank's shard of a DTensor; any other tensor as it is."""
    tensor = tensor.detach()
    return tensor._local_tensor if hasattr(tensor, "_local_tensor") else tensor


def in_parts(x: Tensor) -> Tensor:
    """Real and imaginary parts of complex numbers; any other tensor as it is."""
    if not x.is_complex() or x.layout != torch.strided:
        return x
    return torch.view_as_real(x.detach().resolve_conj())


def is_partial(tensor: Any) -> bool:
    """Is it a DTensor of which this rank has a summand only? Nothing follows for the whole from one of them."""
    return hasattr(tensor, "_local_tensor") and any(placement.is_partial() for placement in tensor.placements)


def of_this_rank(value: Any) -> Any:
    """What this rank has of a DTensor that the model is called with: its shard, None of a summand; else the value."""
    if not hasattr(value, "_local_tensor"):
        return value
    return None if is_partial(value) else local(value)


SPREAD = (
    "its gradient is spread over ranks in another way than itself (each rank has a summand, or another part), and "
    "putting it together is a collective"
)
"""Why nothing is measured of the gradient of a parameter that is a DTensor."""


def gradient_shard(parameter: Any) -> Tensor | None:
    """The gradient of this rank's shard of a parameter; None where there is none here, or only a summand of it.

    Where a DTensor has a whole gradient on each rank (an embedding that is split by its rows), it is a part of that.
    """
    grad = parameter.grad
    if grad is None or is_partial(grad):
        return None
    if not hasattr(grad, "_local_tensor") or grad.placements == getattr(parameter, "placements", grad.placements):
        return local(grad)
    return _cut(local(grad), grad.placements, parameter)


def _cut(found: Tensor, placements: Any, parameter: Any) -> Tensor | None:
    """The part of a gradient that belongs to this rank's shard; None where some of that is on another rank."""
    coordinate, mesh = parameter.device_mesh.get_coordinate(), parameter.device_mesh
    axes = [wanted.dim if wanted.is_shard() else None for wanted in parameter.placements]
    for i, (has, wanted) in enumerate(zip(placements, parameter.placements, strict=True)):
        if has == wanted:
            continue
        axis = axes[i]
        if axis is None or not has.is_replicate() or axes.count(axis) > 1:
            return None
        parts = found.chunk(mesh.size(i), axis)
        at = coordinate[i]
        found = parts[at] if at < len(parts) else found.narrow(axis, 0, 0)
    return found


def is_elsewhere(parameter: Any) -> bool:
    """Is there a gradient, and not that of this rank's shard?"""
    return parameter.grad is not None and gradient_shard(parameter) is None


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Device of a module's first parameter."""
    first = next(module.parameters(), None)
    return default if first is None or first.device.type == "meta" else first.device


def new_accumulator(reduction: str, device: torch.device) -> Tensor:
    """An empty accumulator of a reduction, by name: float32 (fields,)."""
    return empty_accumulator(REDUCTIONS[reduction], device)


def first_local(output: Any) -> Tensor | None:
    """This rank's shard of the first floating-point tensor; None where there is none, or only a summand of it.

    An operation on a DTensor itself may communicate.
    """
    found = first_tensor(output)
    return None if found is None or is_partial(found) else local(found)


def first_tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor of a module's output: the hidden state, by all known conventions."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and not output.is_nested else None
    if isinstance(output, DICTIONARIES):
        output = tuple(output.values())
    elif dataclass_fields := getattr(type(output), "__dataclass_fields__", None):
        output = [vars(output).get(name) for name in dataclass_fields] if hasattr(output, "__dict__") else []
    if isinstance(output, list | tuple):
        for item in output:
            found = first_tensor(item)
            if found is not None:
                return found
    return None


def is_plain(x: Tensor) -> bool:
    """Has it numbers in one piece of memory? Not if it is sparse, nested or quantized; complex ones are left out."""
    if x.layout != torch.strided or x.is_nested or x.is_quantized or x.is_complex():
        return False
    return x.numel() > 0
