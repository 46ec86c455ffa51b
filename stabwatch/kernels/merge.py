"""Merge partial aggregates into an accumulator in place, on the accumulator's device.

On the CPU, where reading a number needs no wait, partial aggregates are plain floats: a few Python
operations instead of a dozen tensor operations. On an accelerator and in a compiled graph they are tensors.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.kernels.constants import device_constant, to_device
from stabwatch.kernels.where import tracing
from stabwatch.signals.reductions import IDENTITY, Reduction

LARGEST = float(np.finfo(np.float32).max)
Aggregates: TypeAlias = Tensor | tuple[float, ...]
"""The fields of one accumulator: float32 (fields,), or as many floats."""


def empty_accumulator(reduction: Reduction, device: torch.device) -> Tensor:
    """An empty accumulator, the identity of each operator: float32 (fields,)."""
    return device_constant(tuple(IDENTITY[f.op] for f in reduction.fields), torch.float32, device).clone()


def merge_(reduction: Reduction, into: Tensor, aggregates: Aggregates) -> None:
    """Merge `aggregates` into `into`, float32 (..., fields). A NaN maximum is ignored: NaNs have a separate count."""
    if isinstance(aggregates, tuple):
        if into.device.type == "cpu":
            merge_floats(reduction, into.numpy(), aggregates)
            return
        aggregates = to_device(aggregates, torch.float32, into.device)
    elif aggregates.device != into.device:
        aggregates = aggregates.to(into.device, non_blocking=True)
    if _is_plain(into) and _is_plain(aggregates):
        with np.errstate(all="ignore"):
            merge_arrays(reduction, into.numpy(), aggregates.detach().numpy())
    else:
        _merge_tensors(reduction, into, aggregates)


def _is_plain(x: Tensor) -> bool:
    """Float32 numbers in the host's memory, which numpy can share."""
    return x.device.type == "cpu" and type(x) is Tensor and x.dtype == torch.float32 and not tracing()


def merge_floats(reduction: Reduction, into: NDArray[np.float32], aggregates: tuple[float, ...]) -> None:
    """The same for floats in the host's memory: float32 (fields,)."""
    merged = _merged(reduction, into.tolist(), aggregates)
    if min(merged) > -LARGEST and max(merged) < LARGEST:
        for i, value in enumerate(merged):  # a list in one piece would become an array first
            into[i] = value
        return
    with np.errstate(over="ignore"):
        into[:] = merged


def _merged(reduction: Reduction, into: list[float], new: tuple[float, ...]) -> list[float]:
    if reduction.sums == len(reduction.ops):
        return [old + one for old, one in zip(into, new, strict=True)]
    out = [*into]
    for i, field in enumerate(reduction.fields):
        if field.op == "sum":
            out[i] += new[i]
        elif field.op == "max":
            wins, ties = new[i] > into[i], new[i] == into[i]
            out[i] = new[i] if wins else into[i]
            if i + 1 < len(out) and reduction.fields[i + 1].op == "arg":
                out[i + 1] = new[i + 1] if wins else min(new[i + 1], into[i + 1]) if ties else into[i + 1]
        elif field.op == "min":
            out[i] = new[i] if new[i] < into[i] else into[i]
    return out


def merge_arrays(reduction: Reduction, into: NDArray[np.float32], new: NDArray[np.float32]) -> None:
    """The same in the host's memory, float32 (..., fields): numpy needs a fifth of the time for few numbers."""
    sums, ops = reduction.sums, reduction.ops
    into[..., :sums] += new[..., :sums]
    for i in range(sums, len(ops)):
        old, one = into[..., i], new[..., i]
        if ops[i] == "max":
            better = one > old
            if i + 1 < len(ops) and ops[i + 1] == "arg":
                old_arg, new_arg = into[..., i + 1], new[..., i + 1]
                tied = np.where(one == old, np.minimum(old_arg, new_arg), old_arg)
                into[..., i + 1] = np.where(better, new_arg, tied)
            into[..., i] = np.where(better, one, old)
        elif ops[i] == "min":
            into[..., i] = np.where(one < old, one, old)


def _merge_tensors(reduction: Reduction, into: Tensor, aggregates: Tensor) -> None:
    sums, ops = reduction.sums, reduction.ops
    into[..., :sums].add_(aggregates[..., :sums])
    for i in range(sums, len(ops)):
        old, new = into[..., i], aggregates[..., i]
        if ops[i] == "max":
            better = new > old
            if i + 1 < len(ops) and ops[i + 1] == "arg":
                old_arg, new_arg = into[..., i + 1], aggregates[..., i + 1]
                tied = torch.where(new == old, torch.minimum(old_arg, new_arg), old_arg)
                old_arg.copy_(torch.where(better, new_arg, tied))
            old.copy_(torch.where(better, new, old))
        elif ops[i] == "min":
            old.copy_(torch.where(new < old, new, old))
