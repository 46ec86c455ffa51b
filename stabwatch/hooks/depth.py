"""Growth of the residual stream over the depth of a stack of blocks: read off their moments when a step is recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.sites import Chosen, Gate, Site, new_cell
from stabwatch.kernels.depth import growth
from stabwatch.runlog import Cell

LEAST = 2
"""Blocks that make a stack."""


class Stacks:
    """Blocks by the list that holds them, in order of depth."""

    def __init__(self, sites: Iterable[tuple[Chosen, Site]], gate: Gate, device: torch.device) -> None:
        stacks: dict[str, list[Site]] = {}
        for chosen, site in sites:
            if chosen.role.residual and site.activation is not None and list(chosen.module.children()):
                stacks.setdefault(site.name.rpartition(".")[0], []).append(site)
        self._stacks = {name: mine for name, mine in stacks.items() if len(mine) >= LEAST}
        self._gate = gate
        self._device = device

    def register(self, buffer: Any) -> None:
        """Put one cell per stack into a StepBuffer."""
        for name, sites in self._stacks.items():
            buffer.add((Cell("residual", name, "depth"),), lambda sites=sites: self._growth(sites))

    def _growth(self, sites: list[Site]) -> Tensor:
        if not self._gate.sampled:
            return new_cell("depth", self._device)
        rows = [site.activation.to(self._device, non_blocking=True) for site in sites if site.activation is not None]
        return growth(torch.stack(rows))
