"""Growth of the residual stream over the depth of a stack of blocks: read off their moments when a step is recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from stabwatch.hooks.base.sites import Site, Target
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.kernels.depth import growth
from stabwatch.runlog import Accumulator

LEAST = 2
"""Blocks that make a stack."""


class Stacks:
    """Blocks by the list that holds them, in order of depth."""

    def __init__(self, sites: Iterable[tuple[Target, Site]], device: torch.device) -> None:
        stacks: dict[str, list[Site]] = {}
        for chosen, site in sites:
            if chosen.role.residual and site.activation is not None and list(chosen.module.children()):
                stacks.setdefault(site.name.rpartition(".")[0], []).append(site)
        self._stacks = {name: mine for name, mine in stacks.items() if len(mine) >= LEAST}
        self._cells = {name: new_accumulator("depth", device) for name in self._stacks}

    def register(self, buffer: Any) -> None:
        """Put one cell per stack into a StepBuffer."""
        for name, cell in self._cells.items():
            buffer.add((Accumulator("residual", name, "depth"),), lambda cell=cell: cell)

    @torch.no_grad()
    def update(self) -> None:
        """The step is over: the blocks' moments are complete."""
        for name, sites in self._stacks.items():
            cell = self._cells[name]
            rows = [s.activation.to(cell.device, non_blocking=True) for s in sites if s.activation is not None]
            cell.copy_(growth(torch.stack(rows)))
