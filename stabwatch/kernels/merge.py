"""The merge law where the cells live: fold partials into a cell in place.

On the CPU, where reading a number waits for nothing, partials are plain floats: a handful of Python
operations instead of a dozen tensor operations. On an accelerator and inside a compiled graph they stay tensors.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from stabwatch.kernels.constants import device_constant, to_device
from stabwatch.signals.reductions import IDENTITY, Reduction

Partials: TypeAlias = Tensor | tuple[float, ...]
"""The fields of one cell: float32 (fields,), or as many floats."""


def empty_accumulator(reduction: Reduction, device: torch.device) -> Tensor:
    """A cell that holds the unit of each operator: float32 (fields,)."""
    return device_constant(tuple(IDENTITY[f.op] for f in reduction.fields), torch.float32, device).clone()


def merge_(reduction: Reduction, cell: Tensor, partials: Partials) -> None:
    """Fold `partials` into `cell`, float32 (..., fields). A NaN maximum is ignored: non-finites are counted apart."""
    if isinstance(partials, tuple):
        if cell.device.type == "cpu":
            cell.copy_(torch.tensor(_merged(reduction, cell.tolist(), partials), dtype=torch.float32))
            return
        partials = to_device(partials, torch.float32, cell.device)
    elif partials.device != cell.device:
        partials = partials.to(cell.device, non_blocking=True)
    _merge_tensors(reduction, cell, partials)


def _merged(reduction: Reduction, cell: list[float], new: tuple[float, ...]) -> list[float]:
    out = [*cell]
    for i, field in enumerate(reduction.fields):
        if field.op == "sum":
            out[i] += new[i]
        elif field.op == "max":
            wins, ties = new[i] > cell[i], new[i] == cell[i]
            out[i] = new[i] if wins else cell[i]
            if i + 1 < len(out) and reduction.fields[i + 1].op == "arg":
                out[i + 1] = new[i + 1] if wins else min(new[i + 1], cell[i + 1]) if ties else cell[i + 1]
        elif field.op == "min":
            out[i] = new[i] if new[i] < cell[i] else cell[i]
    return out


def _merge_tensors(reduction: Reduction, cell: Tensor, partials: Tensor) -> None:
    sums = reduction.sums
    cell[..., :sums].add_(partials[..., :sums])
    ops = [f.op for f in reduction.fields]
    for i in range(sums, len(ops)):
        old, new = cell[..., i], partials[..., i]
        if ops[i] == "max":
            better = new > old
            if i + 1 < len(ops) and ops[i + 1] == "arg":
                old_arg, new_arg = cell[..., i + 1], partials[..., i + 1]
                tied = torch.where(new == old, torch.minimum(old_arg, new_arg), old_arg)
                old_arg.copy_(torch.where(better, new_arg, tied))
            old.copy_(torch.where(better, new, old))
        elif ops[i] == "min":
            old.copy_(torch.where(new < old, new, old))
