"""Everything that is seen at the optimizer's step, in the order in which it must be seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stabwatch.guards import TaylorGuard
from stabwatch.hooks.deep_parameters import DeepParameters
from stabwatch.hooks.drift import DriftTap
from stabwatch.hooks.parameters import ParameterTaps
from stabwatch.hooks.plugged import PluginTaps
from stabwatch.hooks.probe import Probe
from stabwatch.hooks.sites import Site
from stabwatch.hooks.taylor import STEP, TaylorTap


class StepTaps:
    """The parameters of one watch, before and after each optimizer's step.

    A guard that was asked for comes first: what is measured afterwards is the step that was taken.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        parameters: ParameterTaps,
        plugins: PluginTaps,
        device: torch.device,
        watch: Any,
    ) -> None:
        self._model = model
        self._watch = watch
        self._plugins = plugins
        self._parameters = parameters
        self._deep = DeepParameters(model, parameters.owned, device, watch)
        self._probe = Probe(model) if watch.config.taylor or watch.config.guard else None
        self._taylor = TaylorTap(model, self._probe, device) if self._probe and watch.config.taylor else None
        self._guards: dict[int, TaylorGuard] = {}
        self.drift = DriftTap(model, sites, watch.deep)

    def register(self, buffer: Any) -> None:
        """Put all cells into a StepBuffer."""
        self._parameters.register(buffer)
        self._deep.store.register(buffer)
        if (taylor := self._taylor) is not None:
            buffer.add((STEP,), lambda: taylor.cell)

    def before(self, optimizer: Any) -> None:
        """The optimizer is about to step."""
        run, gate = self._watch.guard.run, self._watch.gate
        if self._watch.config.guard and id(optimizer) not in self._guards:
            run("guard", "always", self._set_guard, optimizer)
        if gate.sampled:
            run("gradient", "sampled", self._parameters.measure_gradients, optimizer)
            run("weight", "sampled", self._parameters.measure_weights, optimizer)
            run("update", "sampled", self._parameters.hold, optimizer)
        if gate.deep:
            run("hold", "deep", self._deep.before, optimizer, gate.turn)
            if self._taylor is not None:
                run("taylor", "deep", self._taylor.before, optimizer)
        if gate.coming is not None:
            run("successive", "deep", self._deep.before_turn, optimizer, gate.coming)
        run("plugins", "always", self._plugins.parameters, optimizer)

    def step_ends(self) -> None:
        """All optimizers have stepped."""
        if self._watch.gate.deep and self._watch.gate.turn == 0:
            self._watch.guard.run("drift", "deep", self.drift.measure)

    def _set_guard(self, optimizer: Any) -> None:
        self._guards[id(optimizer)] = TaylorGuard(optimizer, self._model, probe=self._probe)

    def after(self, optimizer: Any) -> None:
        """The optimizer has stepped."""
        run, gate = self._watch.guard.run, self._watch.gate
        if gate.sampled:
            run("update", "sampled", self._parameters.measure_updates)
        if gate.deep:
            run("hold", "deep", self._deep.after, optimizer)
            if self._taylor is not None:
                run("taylor", "deep", self._taylor.after, optimizer)
        if gate.coming is not None:
            run("successive", "deep", self._deep.after_turn)

    def remove(self) -> None:
        """Take the hooks of guards and probes off again."""
        if self._probe is not None:
            self._probe.remove()
        for guard in self._guards.values():
            guard.detach()
