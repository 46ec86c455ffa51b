"""Growth over the depth of a stack of blocks: of the residual stream, and of its gradient on the way back."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.sites import Site, Target
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.hooks.probes.activation_gradient import ACTIVATION_GRADIENT, BACKWARD_GROWTH
from stabwatch.kernels.depth import growth
from stabwatch.signals.reductions import DEPTH

MIN_BLOCKS = 2
"""Blocks that make a stack."""

GROWTH = PROBES.register(Probe(name="depth", tap="residual", reduction=DEPTH, tier="sampled"))
"""Collected by `Stacks` when a step is recorded: it needs the moments of all blocks of a stack."""


class Stacks:
    """Blocks by the list that contains them, in order of depth."""

    def __init__(self, sites: Iterable[tuple[Target, Site]], context: TapContext) -> None:
        self._context = context
        stacks: dict[str, list[Site]] = {}
        for target, site in sites:
            if target.role.residual and site.activation is not None and target.contains:
                stacks.setdefault(target.around[0] if target.around else "", []).append(site)
        self._stacks = {name: mine for name, mine in stacks.items() if len(mine) >= MIN_BLOCKS}
        self._accumulators = {name: new_accumulator("depth", context.device) for name in self._stacks}
        self._backward = {name: new_accumulator("depth", context.device) for name in self._stacks}

    def register(self, buffer: Buffer) -> None:
        """Put one accumulator per stack into the step's buffer."""
        for name, accumulator in self._accumulators.items():
            buffer.add((GROWTH.accumulator(name),), source_of(accumulator))
            buffer.add((BACKWARD_GROWTH.accumulator(name),), source_of(self._backward[name]))

    @torch.no_grad()
    def update(self) -> None:
        """The step is over: the moments of the blocks are complete."""
        for name, sites in self._stacks.items():
            accumulator = self._accumulators[name]
            rows = [s.activation.to(accumulator.device, non_blocking=True) for s in sites if s.activation is not None]
            accumulator.copy_(growth(torch.stack(rows)))
            back = [self._context.accumulators.row(ACTIVATION_GRADIENT.accumulator(s.name)) for s in reversed(sites)]
            self._backward[name].copy_(growth(torch.stack(back)))
