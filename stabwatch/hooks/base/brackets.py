"""Accumulators of the attention brackets: one row per module that may call attention."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.kernels.attention_bracket import brackets
from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.merge import merge_, merge_arrays
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import ATTENTION_BRACKET


class Brackets:
    """The brackets of all sites: float32 (sites, 6).

    Calls leave their logsumexps here as they are (autograd keeps them until the backward in any case); `update`
    reduces all layers of a forward together, in a handful of operations.
    """

    def __init__(self, device: torch.device) -> None:
        self.accumulators: tuple[Accumulator, ...] = ()
        self.matrix = new_accumulator("attention_bracket", device).repeat(0, 1)
        self._pending: dict[tuple[Any, ...], list[tuple[int, Tensor]]] = {}

    def add(self, accumulator: Accumulator) -> int:
        """One more site; returns its row."""
        self.accumulators = (*self.accumulators, accumulator)
        self.matrix = new_accumulator("attention_bracket", self.matrix.device).repeat(len(self.accumulators), 1)
        return len(self.accumulators) - 1

    def register(self, buffer: Buffer) -> None:
        """Put the rows into the step's buffer."""
        buffer.add(self.accumulators, source_of(self.matrix))

    def note(self, row: int, lse: Tensor, keys: int, causal: bool) -> None:
        """Keep the logsumexp (B, H, T) of one call until `update`."""
        self._pending.setdefault((lse.shape, lse.device, keys, causal), []).append((row, lse))

    def update(self) -> None:
        """Reduce the logsumexps that were noted, and merge the result into the rows."""
        pending, self._pending = self._pending, {}
        for (shape, device, keys, causal), calls in pending.items():
            found = brackets(torch.stack([lse for _, lse in calls]), _log_keys(shape[-1], keys, causal, device))
            parts = _distinct([row for row, _ in calls], found.to(self.matrix.device))
            for rows, part in parts:
                if self.matrix.device.type == "cpu":
                    _merge_on_host(self.matrix.numpy(), rows, part.numpy())
                    continue
                index = device_constant(tuple(rows), torch.int64, self.matrix.device)
                merged = self.matrix[index]
                merge_(ATTENTION_BRACKET, merged, part)
                self.matrix[index] = merged


def _merge_on_host(matrix: NDArray[np.float32], rows: list[int], found: NDArray[np.float32]) -> None:
    index = _index(tuple(rows))
    taken = matrix[index]
    if not taken[:, 0].any() and np.isfinite(found).all():  # the first call of a step at each of these sites
        matrix[index] = found
        return
    with np.errstate(all="ignore"):
        merge_arrays(ATTENTION_BRACKET, taken, found)
    matrix[index] = taken


@lru_cache(maxsize=64)
def _index(rows: tuple[int, ...]) -> NDArray[np.int64]:
    return np.array(rows)


def _distinct(rows: list[int], found: Tensor) -> list[tuple[list[int], Tensor]]:
    """The calls in batches in which no site occurs twice (a module may call attention more than once)."""
    if len(set(rows)) == len(rows):
        return [(rows, found)]
    return [([row], found[i : i + 1]) for i, row in enumerate(rows)]


@lru_cache(maxsize=64)
def _log_keys(queries: int, keys: int, causal: bool, device: torch.device) -> Tensor | float:
    if not causal:
        return math.log(keys)
    return torch.arange(1, queries + 1, device=device, dtype=torch.float32).clamp(max=keys).log()
