"""Accumulators of one reduction share one matrix, so that a step's buffer is put together from few pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.kernels.merge import Aggregates, merge_
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import REDUCTIONS


class Buffer(Protocol):
    """The step's buffer, as those who put accumulators into it see it."""

    def add(self, accumulators: tuple[Accumulator, ...], source: Callable[[], Tensor]) -> None:
        """Register a tensor that has the fields of `accumulators` in order; `source` returns it at each step."""


def source_of(tensor: Tensor) -> Callable[[], Tensor]:
    """A source for the buffer: this very tensor at each step."""
    return lambda: tensor


class Accumulators:
    """Each accumulator is a row of its reduction's matrix; aggregates from other devices are moved to the matrix's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._added: dict[str, dict[Accumulator, int]] = {}
        self._matrices: dict[str, Tensor] = {}
        self._rows: dict[Accumulator, Tensor] = {}

    def add(self, accumulators: Iterable[Accumulator]) -> None:
        """More accumulators, before the first measurement."""
        assert not self._matrices, "accumulators are added before the first measurement"
        for accumulator in accumulators:
            mine = self._added.setdefault(accumulator.reduction, {})
            mine.setdefault(accumulator, len(mine))

    def register(self, buffer: Buffer) -> None:
        """Make the matrices and put them into the step's buffer."""
        for reduction, mine in self._added.items():
            matrix = new_accumulator(reduction, self._device).repeat(len(mine), 1)
            self._matrices[reduction] = matrix
            self._rows |= {accumulator: matrix[i] for accumulator, i in mine.items()}
            buffer.add(tuple(mine), source_of(matrix))

    def row(self, accumulator: Accumulator) -> Tensor:
        """The fields of an accumulator as they are now, float32 (fields,); not to be written to."""
        return self._rows[accumulator]

    def update(self, accumulator: Accumulator, aggregates: Aggregates) -> None:
        """Merge aggregates into an accumulator."""
        merge_(REDUCTIONS[accumulator.reduction], self._rows[accumulator], aggregates)

    def update_all(self, first: Accumulator, aggregates: Tensor) -> None:
        """Merge aggregates (n, fields) into n accumulators that were added one after the other, from `first` on."""
        start = self._added[first.reduction][first]
        rows = self._matrices[first.reduction][start : start + len(aggregates)]
        merge_(REDUCTIONS[first.reduction], rows, aggregates)
