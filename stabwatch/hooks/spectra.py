"""The singular values of the matrices that a parameter holds, and of what a step did to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stabwatch.kernels.power_iteration import iterate, matrices, start

RANK = 4
"""Columns of the block that is iterated: more than are reported, so that the first ones converge fast."""
FIRST_ITERATIONS = 4
"""At the first visit, when there is no warm start."""
UPDATE_ITERATIONS = 2
"""For an update, whose directions are partly new each time."""


class Spectra:
    """One parameter. names: of its matrices (fused queries, keys and values are three, a stack of experts is many)."""

    def __init__(self, name: str, parameter: Tensor, module: nn.Module | None) -> None:
        self._module = module
        parts, _ = matrices(name, parameter, module)
        self._name = name
        self.names = tuple(f"{name}.{part}" if part else name for part in parts)
        self._basis: Tensor | None = None
        self._update_basis: Tensor | None = None

    def of_weight(self, weight: Tensor) -> Tensor:
        """float32 (matrices, 5): partials of `spectrum`, by one more iteration from where the last visit ended."""
        x = self._parts(weight)
        if self._basis is None:
            self._basis = start(x, RANK)
            for _ in range(FIRST_ITERATIONS):
                self._basis = iterate(x, self._basis)[1]
        values, self._basis, residual = iterate(x, self._basis)
        return _partials(x, values, residual)

    def of_update(self, change: Tensor) -> Tensor:
        """The same of a step's change."""
        x = self._parts(change)
        if self._update_basis is None:
            self._update_basis = start(x, RANK)
        for _ in range(UPDATE_ITERATIONS):
            values, self._update_basis, residual = iterate(x, self._update_basis)
        return _partials(x, values, residual)

    def _parts(self, x: Tensor) -> Tensor:
        return matrices(self._name, x, self._module)[1]


def _partials(x: Tensor, values: Tensor, residual: Tensor) -> Tensor:
    sumsq = torch.linalg.vector_norm(x.float(), dim=(-2, -1)).square()
    return torch.stack((torch.ones_like(sumsq), sumsq, values[:, 0], values[:, 1], residual), dim=1)
