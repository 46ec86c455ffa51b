"""The StepBuffer: all partials of a step, on the device until the step ends, then one copy to the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stabwatch.kernels.constants import to_device
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import IDENTITY, REDUCTIONS

Source = Callable[[], Tensor]


def identity_of(cells: tuple[Accumulator, ...], device: torch.device) -> Tensor:
    """The empty value of one row per cell: float32 (cells, fields)."""
    units = [IDENTITY[f.op] for c in cells for f in REDUCTIONS[c.reduction].fields]
    return to_device(units, torch.float32, device).view(len(cells), -1)


class StepBuffer:
    """Collects cells that live in different places (sites own theirs, layers share a matrix) into one flat vector."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cells: list[tuple[Accumulator, ...]] = []
        self._sources: list[Source] = []
        self._units: dict[tuple[int, torch.device], Tensor] = {}

    def add(self, cells: tuple[Accumulator, ...], source: Source) -> None:
        """Register a tensor that holds the fields of `cells` in order; `source` gives it anew at each step."""
        self._cells.append(cells)
        self._sources.append(source)

    @property
    def cells(self) -> tuple[Accumulator, ...]:
        """All cells, in the order of the flat vector."""
        return tuple(cell for group in self._cells for cell in group)

    def flush(self) -> Tensor:
        """The flat vector of this step, float32 (slots,); every cell is empty again afterwards."""
        with torch.no_grad():
            tensors = [source() for source in self._sources]
            flat = torch.cat([self._here(t) for t in tensors])
            for device in dict.fromkeys(t.device for t in tensors):
                mine = [(i, t) for i, t in enumerate(tensors) if t.device == device]
                torch._foreach_copy_([t for _, t in mine], [self._unit(i, t) for i, t in mine])
        return flat

    def _here(self, x: Tensor) -> Tensor:
        x = x.reshape(-1)
        return x if x.device == self.device else x.to(self.device, non_blocking=True)

    def _unit(self, source: int, like: Tensor) -> Tensor:
        """By the place of the source: to hash its cells anew at each step would cost more than all the rest."""
        key = (source, like.device)
        if key not in self._units:
            self._units[key] = identity_of(self._cells[source], like.device).reshape(like.shape)
        return self._units[key]
