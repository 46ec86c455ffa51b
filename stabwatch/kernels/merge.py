"""The merge law on the device: fold partials into a cell in place."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.signals.reductions import UNIT, Reduction


def empty_cell(reduction: Reduction, device: torch.device) -> Tensor:
    """A cell that holds the unit of each operator: float32 (fields,)."""
    return torch.tensor([UNIT[f.op] for f in reduction.fields], dtype=torch.float32, device=device)


def merge_(reduction: Reduction, cell: Tensor, partials: Tensor) -> None:
    """Fold `partials` into `cell`, both float32 (fields,). A NaN maximum is ignored: non-finites are counted apart."""
    sums = reduction.sums
    cell[:sums].add_(partials[:sums])
    ops = [f.op for f in reduction.fields]
    for i in range(sums, len(ops)):
        if ops[i] == "max":
            better = partials[i] > cell[i]
            if i + 1 < len(ops) and ops[i + 1] == "arg":
                tied = torch.where(partials[i] == cell[i], torch.minimum(cell[i + 1], partials[i + 1]), cell[i + 1])
                cell[i + 1].copy_(torch.where(better, partials[i + 1], tied))
            cell[i].copy_(torch.where(better, partials[i], cell[i]))
        elif ops[i] == "min":
            cell[i].copy_(torch.where(partials[i] < cell[i], partials[i], cell[i]))
