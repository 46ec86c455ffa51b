"""The step length over the Taylor radius, on deep steps, for who asks for it: the model is called once more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.copies import Copies
from stabwatch.hooks.parameters import local
from stabwatch.hooks.probe import Probe
from stabwatch.hooks.sites import new_cell
from stabwatch.kernels.merge import merge_
from stabwatch.kernels.taylor import radii, ratios, taylor
from stabwatch.runlog import Cell
from stabwatch.signals.reductions import RADII, TAYLOR


class TaylorTap:
    """Two cells, for the whole run."""

    def __init__(self, model: nn.Module, probe: Probe, device: torch.device) -> None:
        self._probe = probe
        self._named = {id(p): name for name, p in model.named_parameters()}
        self._copies = Copies()
        self._before: dict[str, Tensor] = {}
        self.cells = {TAYLOR: new_cell("taylor", device), RADII: new_cell("radii", device)}

    @torch.no_grad()
    def before(self, optimizer: Any) -> None:
        """Copy what the optimizer is about to change."""
        mine = self._of(optimizer) if self._probe.ready else {}
        self._before = dict(zip(mine, self._copies.of(list(mine.values())), strict=True))

    @torch.no_grad()
    def after(self, optimizer: Any) -> None:
        """Fold the ratios of the last batch's first samples."""
        before, self._before = self._before, {}
        if before:
            after = self._of(optimizer)
            change = torch._foreach_sub(list(after.values()), list(before.values()))
            length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(change)))
            found = ratios(*self._probe.rates(before, after))
            merge_(TAYLOR, self.cells[TAYLOR], taylor(found, length))
            merge_(RADII, self.cells[RADII], radii(found))

    def register(self, buffer: Any) -> None:
        """Put the cells into a StepBuffer."""
        for reduction, cell in self.cells.items():
            buffer.add((Cell("step", "", reduction.name),), lambda cell=cell: cell)

    def _of(self, optimizer: Any) -> dict[str, Tensor]:
        params = (p for group in optimizer.param_groups for p in group["params"])
        return {self._named[id(p)]: local(p) for p in params if id(p) in self._named}
