"""The step length over the Taylor radius, on deep steps, for who asks for it: the model is called once more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.copies import Copies
from stabwatch.hooks.base.tensors import local, new_accumulator
from stabwatch.hooks.probes.directional import Probe
from stabwatch.kernels.merge import merge_
from stabwatch.kernels.taylor import radii, ratios, taylor
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import RADII, TAYLOR

NO_SOFTMAX = "no call of `cross_entropy` was seen, and the radius is that of a softmax"


class TaylorTap:
    """Two cells, for the whole run. A step is what all optimizers change together."""

    def __init__(self, model: nn.Module, probe: Probe, device: torch.device, watch: Any) -> None:
        self._probe = probe
        self._watch = watch
        self._named = {id(p): name for name, p in model.named_parameters()}
        self._copies: dict[int, Copies] = {}
        self._before: dict[str, Tensor] = {}
        self._after: dict[str, Tensor] = {}
        self._fails = False
        self.cells = {TAYLOR: new_accumulator("taylor", device), RADII: new_accumulator("radii", device)}

    @torch.no_grad()
    def before(self, optimizer: Any) -> None:
        """Copy what the optimizer is about to change."""
        mine = self._of(optimizer) if self._probe.ready and self._applies() else {}
        if mine.keys() & self._before.keys():  # the others did not step
            self._before, self._after = {}, {}
        copies = self._copies.setdefault(id(optimizer), Copies())
        self._before.update(zip(mine, copies.of(list(mine.values())), strict=True))
        self._after.update(mine)

    @torch.no_grad()
    def step_ends(self) -> None:
        """Fold the ratios of the last batch's first samples."""
        before, self._before, after, self._after = self._before, {}, self._after, {}
        if not before:
            return
        try:
            found = ratios(*self._probe.rates(before, after))
        except ValueError as error:
            self._fails = True
            self._watch.unmeasured("taylor", "", f"the model was called on a part of its batch: {error}")
            return
        change = [after[name].float() - old.float() for name, old in before.items()]
        squares = torch.stack([c.square().sum().to(found.device) for c in change])
        merge_(TAYLOR, self.cells[TAYLOR], taylor(found, squares.sum().sqrt()))
        merge_(RADII, self.cells[RADII], radii(found))

    def _applies(self) -> bool:
        """To a loss that has no softmax it does not."""
        softmax = self._watch.cells.classifies or self._watch.flags.traced
        if not softmax:
            self._watch.unmeasured("taylor", "", NO_SOFTMAX)
        return softmax and not self._fails

    def register(self, buffer: Any) -> None:
        """Put the cells into a StepBuffer."""
        for reduction, cell in self.cells.items():
            buffer.add((Accumulator("step", "", reduction.name),), lambda cell=cell: cell)

    def _of(self, optimizer: Any) -> dict[str, Tensor]:
        params = (p for group in optimizer.param_groups for p in group["params"])
        return {self._named[id(p)]: local(p) for p in params if id(p) in self._named}
