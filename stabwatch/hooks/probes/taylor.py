"""The step length over the Taylor radius, on deep steps, where the user asks for it: the model is called once more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.copies import Copies
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.tensors import in_parts, local, new_accumulator
from stabwatch.hooks.probes.directional import DirectionalDerivative, NotCallable
from stabwatch.kernels.merge import merge_
from stabwatch.kernels.taylor import radii, ratios, taylor
from stabwatch.signals.reductions import RADII, TAYLOR

NO_SOFTMAX = "no call of `cross_entropy` was seen, and the radius is that of a softmax"

RATIO = PROBES.register(Probe(name="taylor", tap="step", reduction=TAYLOR, tier="deep", optional=True))
DISTRIBUTION = PROBES.register(
    Probe(name="taylor", tap="step", reduction=RADII, tier="deep", optional=True, reported_as="taylor")
)
"""Collected by `TaylorTap`: they need the weights before and after all optimizers have stepped."""


class TaylorTap:
    """Accumulators for the whole run. A step is what all optimizers change together."""

    def __init__(self, model: nn.Module, derivative: DirectionalDerivative, context: TapContext) -> None:
        self._derivative = derivative
        self._context = context
        self._named = {id(p): name for name, p in model.named_parameters()}
        self._copies: dict[int, Copies] = {}
        self._before: dict[str, Tensor] = {}
        self._after: dict[str, Tensor] = {}
        self._fails = False
        self._accumulators = {p: new_accumulator(p.reduction.name, context.device) for p in (RATIO, DISTRIBUTION)}

    @torch.no_grad()
    def before(self, optimizer: Any) -> None:
        """Copy what the optimizer is about to change."""
        mine = self._of(optimizer) if self._applies() and self._derivative.ready else {}
        if mine.keys() & self._before.keys():  # the others did not step
            self._before, self._after = {}, {}
        copies = self._copies.setdefault(id(optimizer), Copies())
        self._before.update(zip(mine, copies.of(list(mine.values())), strict=True))
        self._after.update(mine)

    @torch.no_grad()
    def step_ends(self) -> None:
        """All optimizers have stepped: measure the ratios of the last batch's first samples."""
        before, self._before, after, self._after = self._before, {}, self._after, {}
        if not before:
            return
        try:
            found = ratios(*self._derivative.rates(before, after))
        except ValueError as error:
            self._fails = True
            called = "" if isinstance(error, NotCallable) else "the model was called on a part of its batch: "
            self._context.unmeasured(RATIO.report_key, "", f"{called}{error}")
            return
        change = [in_parts(after[name]).float() - in_parts(old).float() for name, old in before.items()]
        squares = torch.stack([c.square().sum().to(found.device) for c in change])
        merge_(TAYLOR, self._accumulators[RATIO], taylor(found, squares.sum().sqrt()))
        merge_(RADII, self._accumulators[DISTRIBUTION], radii(found))

    def _applies(self) -> bool:
        """The radius is that of a softmax: is there one in the loss, and can the model be called?"""
        if self._derivative.refusal:
            self._context.unmeasured(RATIO.report_key, "", self._derivative.refusal)
            return False
        softmax = self._context.run.classifies or self._context.flags.traced
        if not softmax:
            self._context.unmeasured(RATIO.report_key, "", NO_SOFTMAX)
        return softmax and not self._fails

    def register(self, buffer: Buffer) -> None:
        """Put the accumulators into the step's buffer."""
        for probe, accumulator in self._accumulators.items():
            buffer.add((probe.accumulator(),), source_of(accumulator))

    def _of(self, optimizer: Any) -> dict[str, Tensor]:
        params = (p for group in optimizer.param_groups for p in group["params"])
        return {self._named[id(p)]: local(p) for p in params if id(p) in self._named}
