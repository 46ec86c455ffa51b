"""Modules that are called several times in one forward, call by call: a looped core, shared layers, a recurrent cell.

Which modules these are is seen in the first measured step, and the hooks are laid out again for the next one. Followed
are the outermost ones: where a block is called several times, its parts are called as often.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.loops import POSITIONS, Loop, names_of, place_of
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import first_local, new_accumulator
from stabwatch.kernels.constants import to_device
from stabwatch.kernels.depth import growth
from stabwatch.kernels.loop import gain, relative_step
from stabwatch.kernels.moments import moments
from stabwatch.signals.declaration import Tier
from stabwatch.signals.reductions import DEPTH, LOOP_GAIN, LOOP_STEP, MOMENTS, Reduction

FEWEST = 3
"""Calls in one call of the module around it. Two are common where nothing is fed back: two towers, two views."""
MOST = 16
"""Modules that are followed."""
TOO_MANY = f"only the first {MOST} modules that are called several times are followed call by call"


def _declare(name: str, reduction: Reduction, tier: Tier) -> Probe:
    return PROBES.register(
        Probe(
            name=name, tap="loop", reduction=reduction, tier=tier, optional=True, graph_safe=False, reported_as="loop"
        )
    )


OUTPUT = _declare("loop", MOMENTS, "sampled")
STEP = _declare("loop_step", LOOP_STEP, "deep")
GROWTH = _declare("depth", DEPTH, "sampled")
GAIN = _declare("depth", LOOP_GAIN, "sampled")
"""Collected by `measure` at each call, and by `Loops` when a step is recorded. Compiled graphs do not tell calls apart:
there the calls of a module are only measured together."""


@torch.no_grad()
def measure(site: Site, output: Any, call: int) -> None:
    """A looped module has returned, for the `call`-th time in this forward."""
    x, loop, context = first_local(output), site.loop, site.context
    if x is None or loop is None or not x.numel():
        return
    name = loop.names[place_of(call)]
    context.accumulators.update(OUTPUT.accumulator(name), moments(x))
    before, loop.previous = loop.previous if call else None, x if context.flags.deep else None
    if before is not None and before.shape == x.shape and before.device == x.device:
        context.isolate(STEP, context.accumulators.update, STEP.accumulator(name), relative_step(x, before))


class Loops:
    """The looped modules of a model that are known so far."""

    def __init__(self, sites: Iterable[Site], context: TapContext) -> None:
        self._context = context
        self._sites = [site for site in sites if site.activation is not None]
        self._looped = [site for site in self._sites if site.name in context.looped]
        self._made = {
            probe: {s.name: new_accumulator(probe.reduction.name, context.device) for s in self._looped}
            for probe in (GROWTH, GAIN)
        }
        for site in self._looped:
            site.loop = Loop(names_of(site.name))
            for probe in (OUTPUT, STEP):
                context.accumulators.add(probe.accumulator(name) for name in site.loop.names)

    @property
    def found(self) -> bool:
        """Were more of them seen since the hooks were laid out?"""
        return len(self._context.looped) > len(self._looped)

    def register(self, buffer: Buffer) -> None:
        """Put the accumulators of each module into the step's buffer."""
        for probe, made in self._made.items():
            for name, accumulator in made.items():
                buffer.add((probe.accumulator(name),), source_of(accumulator))

    @torch.no_grad()
    def update(self) -> None:
        """The step is over: what its calls were is known, and which modules are called several times."""
        for site in self._looped:
            assert site.loop is not None
            site.loop.previous = None
            rows = torch.stack([self._context.accumulators.row(OUTPUT.accumulator(name)) for name in site.loop.names])
            positions = to_device(list(POSITIONS), torch.float32, rows.device)
            self._made[GROWTH][site.name].copy_(growth(rows, positions))
            self._made[GAIN][site.name].copy_(gain(rows))
        for site in self._sites:
            if site.calls >= FEWEST and site.loop is None and self._is_outermost(site):
                self._note(site.name)

    def _is_outermost(self, site: Site) -> bool:
        """Is it called several times in each call of the module around it?"""
        around = site.parent
        within = around.calls if around is not None and around.forward == site.forward else 0
        return site.forward == self._context.forwards and site.calls >= FEWEST * max(1, within)

    def _note(self, name: str) -> None:
        if len(self._context.looped) < MOST:
            self._context.looped[name] = None
        elif name not in self._context.looped:
            self._context.unmeasured(OUTPUT.report_key, name, TOO_MANY)
