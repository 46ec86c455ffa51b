"""Cells that lie together: one matrix per reduction, so that a step's buffer is put together from few pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.kernels.merge import Partials, merge_
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import REDUCTIONS


class Accumulators:
    """Every cell is a row; partials from other devices come to the store's own."""

    def __init__(self, cells: Iterable[Accumulator], device: torch.device) -> None:
        groups: dict[str, list[Accumulator]] = {}
        for cell in dict.fromkeys(cells):
            groups.setdefault(cell.reduction, []).append(cell)
        self._groups = {r: (tuple(mine), new_accumulator(r, device).repeat(len(mine), 1)) for r, mine in groups.items()}
        self._rows = {cell: rows[i] for mine, rows in self._groups.values() for i, cell in enumerate(mine)}

    def register(self, buffer: Any) -> None:
        """Put the matrices into a StepBuffer."""
        for mine, rows in self._groups.values():
            buffer.add(mine, lambda rows=rows: rows)

    def __contains__(self, cell: object) -> bool:
        return cell in self._rows

    def update(self, tap: str, site: str, reduction: str, partials: Partials) -> None:
        """Merge partials into a cell."""
        merge_(REDUCTIONS[reduction], self._rows[Accumulator(tap, site, reduction)], partials)

    def update_all(self, first: Accumulator, partials: Tensor) -> None:
        """Merge partials (n, fields) into n cells that were given one after the other, from `first` on."""
        mine, rows = self._groups[first.reduction]
        start = mine.index(first)
        merge_(REDUCTIONS[first.reduction], rows[start : start + len(partials)], partials)
