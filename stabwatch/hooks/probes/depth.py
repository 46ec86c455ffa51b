"""Growth of the residual stream over the depth of a stack of blocks, from the moments of the blocks' outputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.sites import Site, Target
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.kernels.depth import growth
from stabwatch.signals.reductions import DEPTH

MIN_BLOCKS = 2
"""Blocks that make a stack."""

GROWTH = PROBES.register(Probe(name="depth", tap="residual", reduction=DEPTH, tier="sampled"))
"""Collected by `Stacks` when a step is recorded: it needs the moments of all blocks of a stack."""


class Stacks:
    """Blocks by the list that contains them, in order of depth."""

    def __init__(self, sites: Iterable[tuple[Target, Site]], device: torch.device) -> None:
        stacks: dict[str, list[Site]] = {}
        for target, site in sites:
            if target.role.residual and site.activation is not None and target.contains:
                stacks.setdefault(target.around[0] if target.around else "", []).append(site)
        self._stacks = {name: mine for name, mine in stacks.items() if len(mine) >= MIN_BLOCKS}
        self._accumulators = {name: new_accumulator("depth", device) for name in self._stacks}

    def register(self, buffer: Buffer) -> None:
        """Put one accumulator per stack into the step's buffer."""
        for name, accumulator in self._accumulators.items():
            buffer.add((GROWTH.accumulator(name),), source_of(accumulator))

    @torch.no_grad()
    def update(self) -> None:
        """The step is over: the moments of the blocks are complete."""
        for name, sites in self._stacks.items():
            accumulator = self._accumulators[name]
            rows = [s.activation.to(accumulator.device, non_blocking=True) for s in sites if s.activation is not None]
            accumulator.copy_(growth(torch.stack(rows)))
