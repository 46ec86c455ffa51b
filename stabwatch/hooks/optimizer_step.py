"""Everything that is seen at the optimizer's step, in the order in which it must be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.hooks.forward import ModuleTaps
from stabwatch.hooks.probes.custom import PluginTaps
from stabwatch.hooks.probes.directional import Probe
from stabwatch.hooks.probes.drift import DriftTap
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.hooks.probes.taylor import TaylorTap
from stabwatch.hooks.probes.weights import DeepParameters
from stabwatch.kernels.merge import merge_
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import HOST_COUNT

INTERVENTIONS = Accumulator("optimizer", "", "host_count")


class StepGuard(Protocol):
    """A guard that acts inside the optimizer's step, as the hooks see it."""

    interventions: Tensor
    """How often it has acted, on the device, ()."""

    def clipped(self, norm: Tensor) -> None:
        """Gradients were clipped, and this was their norm before."""

    def detach(self) -> None:
        """Take it off the optimizer."""


StepGuards = Callable[[Any, Probe | None], Sequence[StepGuard]]
"""Makes the guards that were asked for, for an optimizer."""


class StepTaps:
    """The parameters of one watch, before and after each optimizer's step.

    A guard that was asked for comes first: what is measured afterwards is the step that was taken.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: ModuleTaps,
        parameters: ParameterTaps,
        plugins: PluginTaps,
        device: torch.device,
        watch: Any,
        guards: StepGuards | None,
    ) -> None:
        self._model = model
        self._watch = watch
        self._plugins = plugins
        self._parameters = parameters
        self._deep = DeepParameters(model, parameters.tracked, device, watch)
        self._make_guards = guards
        self._probe = Probe(model) if watch.config.taylor or "taylor" in watch.config.guards else None
        self._taylor = TaylorTap(model, self._probe, device, watch) if self._probe and watch.config.taylor else None
        self._guards: dict[int, Sequence[StepGuard]] = {}
        self._interventions = new_accumulator("host_count", device)
        self._told = torch.zeros((), device=device)
        self.drift = DriftTap(model, modules.sites, modules.deep)

    def count_only(self, counts: Callable[[nn.Parameter], bool]) -> None:
        """Measure only the parameters for which `counts` is true: other ranks hold the same as the others."""
        self._parameters.counts = self._deep.counts = self._plugins.counts = counts

    def register(self, buffer: Any) -> None:
        """Put all cells into a StepBuffer."""
        self._parameters.register(buffer)
        self._deep.store.register(buffer)
        if self._taylor is not None:
            self._taylor.register(buffer)
        if self._make_guards is not None:
            buffer.add((INTERVENTIONS,), lambda: self._interventions)

    def before(self, optimizer: Any, closure: bool = False) -> None:
        """The optimizer is about to step. With a closure it has no gradients yet, or those of the last step."""
        run, flags = self._watch.isolation.run, self._watch.flags
        if self._make_guards is not None and id(optimizer) not in self._guards:
            run("guard", "always", self._set_guard, optimizer, self._make_guards)
        if flags.sampled:
            if not closure:
                run("gradient", "sampled", self._parameters.measure_gradients, optimizer)
            run("weight", "sampled", self._parameters.measure_weights, optimizer)
            run("update", "sampled", self._parameters.snapshot, optimizer)
        if flags.deep:
            run("hold", "deep", self._deep.before, optimizer, closure)
            if self._taylor is not None:
                run("taylor", "deep", self._taylor.before, optimizer)
        if flags.next_phase is not None:
            run("successive", "deep", self._deep.before_phase, optimizer, flags.next_phase)
        run("plugins", "always", self._plugins.parameters, optimizer)

    def clipped(self, norm: Tensor) -> None:
        """Gradients were clipped, and this was their norm before."""
        for guard in (g for guards in self._guards.values() for g in guards):
            guard.clipped(norm)

    def step_ends(self) -> None:
        """All optimizers have stepped that do in this step."""
        if self._guards and self._watch.flags.open:
            self._watch.isolation.run("guard", "always", self._count)
        if self._watch.flags.deep and self._taylor is not None:
            self._watch.isolation.run("taylor", "deep", self._taylor.step_ends)
        if self._watch.flags.deep and self._watch.flags.phase == 0:
            self._watch.isolation.run("drift", "deep", self.drift.measure)

    def _set_guard(self, optimizer: Any, make: StepGuards) -> None:
        self._guards[id(optimizer)] = ()  # also when it cannot be set: reported once
        self._guards[id(optimizer)] = make(optimizer, self._probe)

    @torch.no_grad()
    def _count(self) -> None:
        device = self._interventions.device
        counts = [g.interventions.to(device, torch.float32) for guards in self._guards.values() for g in guards]
        total = torch.stack(counts).sum() if counts else self._told
        merge_(HOST_COUNT, self._interventions, torch.stack((torch.ones_like(total), total - self._told)))
        self._told = total

    def after(self, optimizer: Any, closure: bool = False) -> None:
        """The optimizer has stepped. With a closure its gradients are those of the last time that it was called."""
        run, flags = self._watch.isolation.run, self._watch.flags
        if flags.sampled:
            if closure:
                run("gradient", "sampled", self._parameters.measure_gradients, optimizer)
            run("update", "sampled", self._parameters.measure_updates)
        if flags.deep:
            run("hold", "deep", self._deep.after, optimizer)
        if flags.next_phase is not None:
            run("successive", "deep", self._deep.after_phase)

    def remove(self) -> None:
        """Take the hooks of guards and probes off again."""
        if self._probe is not None:
            self._probe.remove()
        for guard in (g for guards in self._guards.values() for g in guards):
            guard.detach()


def has_closure(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """From the arguments of a call of `Optimizer.step`, the optimizer among them: is it to compute the gradients?"""
    return any(callable(x) and not isinstance(x, torch.optim.Optimizer) for x in (*args, kwargs.get("closure")))
