"""Everything that is measured at the optimizer's step, in the order in which it must be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stabwatch.distributed.summands import Place
from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.hooks.forward import ModuleTaps
from stabwatch.hooks.parameters import ParameterProbes
from stabwatch.hooks.probes import layers
from stabwatch.hooks.probes.adapters import LORA, Adapters
from stabwatch.hooks.probes.directional import DirectionalDerivative
from stabwatch.hooks.probes.drift import TRACKED_BATCH, TrackedBatch
from stabwatch.hooks.probes.increments import INCREMENTS, Increments
from stabwatch.hooks.probes.jacobian import JACOBIAN, JacobianTap
from stabwatch.hooks.probes.last_update import LAST_CHANGE
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.hooks.probes.quantised import QUANTISERS, QuantisedWeights
from stabwatch.hooks.probes.reach import REACH, Reach
from stabwatch.hooks.probes.replicas import CHECK, ReplicaChecks
from stabwatch.hooks.probes.sharpness import SHARPNESS, SharpnessTap
from stabwatch.hooks.probes.taylor import RATIO, TaylorTap
from stabwatch.kernels.merge import merge_
from stabwatch.signals.reductions import HOST_COUNT

INTERVENTIONS = PROBES.register(Probe(name="guard", tap="optimizer", reduction=HOST_COUNT, tier="always"))
"""Collected by `StepTaps`: the guards count for themselves."""


class StepGuard(Protocol):
    """A guard that acts inside the optimizer's step, as far as the hooks need it."""

    interventions: Tensor
    """How often it has acted, on the device, ()."""
    failure: str
    """Why it is off, by an error of its own; '' while it works."""

    def clipped(self, norm: Tensor) -> None:
        """Gradients were clipped, and this was their norm before."""

    def detach(self) -> None:
        """Remove it from the optimizer."""


StepGuards = Callable[[Any, DirectionalDerivative | None], Sequence[StepGuard]]
"""Makes the guards of an optimizer that the settings ask for."""


class StepTaps:
    """The parameters of one watch, before and after each optimizer's step.

    Guards come first: what is measured afterwards is the step that was really taken. taylor: measure the Taylor radius.
    derivative: what that and the guard of the same name call the model with, if the settings ask for either. sharpness:
    the same for the Hessian, with more samples. jacobian: the same for that of the output by the input.
    replicas: what should be the same on all ranks, where there are several.
    before: those whose place they take, when the model has changed.
    """

    tracked_batch: TrackedBatch
    quantised: QuantisedWeights
    _probes: ParameterProbes
    _reach: Reach
    _adapters: Adapters
    _increments: Increments

    def __init__(
        self,
        model: nn.Module,
        modules: ModuleTaps,
        parameters: ParameterTaps,
        context: TapContext,
        guards: StepGuards | None,
        *,
        derivative: DirectionalDerivative | None = None,
        taylor: bool = False,
        sharpness: DirectionalDerivative | None = None,
        jacobian: DirectionalDerivative | None = None,
        replicas: ReplicaChecks | None = None,
        before: StepTaps | None = None,
    ) -> None:
        self._context = context
        self.replicas = replicas
        self._parameters = parameters
        self._probes = ParameterProbes(parameters, context, None if before is None else before._probes)
        self._reach = Reach(model, parameters, context.device, None if before is None else before._reach)
        self._make_guards = guards
        self._derivative = derivative
        self._taylor = TaylorTap(model, derivative, context) if derivative is not None and taylor else None
        self._sharpness = None if sharpness is None else SharpnessTap(model, sharpness, context)
        self._jacobian = None if jacobian is None else JacobianTap(model, jacobian, context)
        self._guards: dict[int, Sequence[StepGuard]] = {} if before is None else before._guards
        self._interventions = new_accumulator("host_count", context.device)
        self._counted = torch.zeros((), device=context.device)
        if before is not None:
            self._counted = before._counted.to(context.device)
        self._increments = Increments(model, context)
        self._adapters = Adapters(model, context, None if before is None else before._adapters)
        self.quantised = QuantisedWeights(model, context, None if before is None else before.quantised)
        self.tracked_batch = TrackedBatch(
            model, modules.sites, context, None if before is None else before.tracked_batch
        )

    def count_only(
        self, counts: Callable[[nn.Parameter], bool], place_of: Callable[[Any], Place | None], room: Callable[[], int]
    ) -> None:
        """Measure only the parameters for which `counts` is true. Others are counted by another rank that has them.

        place_of, room: see `SpreadGradients`.
        """
        self._parameters.counts = self._probes.counts = counts
        self._parameters.spread.place_of, self._parameters.spread.room = place_of, room

    def _tell_estimates(self) -> None:
        if told := self._parameters.spread.estimates:
            self._context.unmeasured("note", "estimated gradients", told)

    def with_state(self) -> frozenset[str] | None:
        """See `ParameterProbes`."""
        return self._probes.with_state

    def register(self, buffer: Buffer) -> None:
        """Put the accumulators into the step's buffer."""
        self._parameters.register(buffer)
        self._reach.register(buffer)
        if self.replicas is not None:
            self.replicas.register(buffer)
        if self._taylor is not None:
            self._taylor.register(buffer)
        if self._sharpness is not None:
            self._sharpness.register(buffer)
        if self._jacobian is not None:
            self._jacobian.register(buffer)
        if self._make_guards is not None:
            buffer.add((INTERVENTIONS.accumulator(),), source_of(self._interventions))

    def before(self, optimizer: Any, closure: bool = False) -> None:
        """The optimizer is about to step. With a closure it has no gradients yet, or those of the last step."""
        isolate, flags = self._context.isolate, self._context.flags
        if self._make_guards is not None and id(optimizer) not in self._guards:
            isolate(INTERVENTIONS, self._set_guard, optimizer, self._make_guards)
        if not closure:
            isolate(REACH, self._reach.before, optimizer)
        self._check_replicas()
        if flags.sampled:
            if not closure:
                isolate(layers.GRADIENT, self._parameters.read_gradients, optimizer)
            isolate(layers.WEIGHT, self._parameters.measure_weights, optimizer)
            isolate(layers.CHANGE, self._parameters.snapshot, optimizer, closure)
        if self._probes.wanted:
            self._context.isolation.run("parameters", flags.tier, self._probes.before, optimizer, closure)
        if flags.deep and self._taylor is not None:
            isolate(RATIO, self._taylor.before, optimizer)
        if flags.deep:
            isolate(LORA, self._adapters.before, optimizer)
            isolate(INCREMENTS, self._increments.before, optimizer)
            if not closure:
                isolate(QUANTISERS, self.quantised.measure)
        if flags.next_phase is not None:
            isolate(LAST_CHANGE, self._probes.before_phase, optimizer, flags.next_phase)

    def gradients_ready(self, optimizer: Any) -> None:
        """A closure, or a loop whose steps are not announced, has computed gradients: they may be the last ones."""
        if self._context.flags.sampled:
            self._context.isolate(layers.GRADIENT, self._parameters.read_gradients, optimizer)

    def before_unannounced(self, optimizer: Any, taken: bool) -> None:
        """The first backward pass of a step whose optimizer announces nothing has ended.

        taken: `torch.autograd.grad` has returned the gradients, and `.grad` is empty.
        """
        if taken:
            self._context.unmeasured(layers.TAKEN, "", layers.NOT_KEPT)
        else:
            self._context.isolate(REACH, self._reach.before, optimizer)
        self._check_replicas()
        if self._context.flags.sampled:
            self._context.isolate(layers.WEIGHT, self._parameters.measure_weights, optimizer)
            self._context.isolate(layers.CHANGE, self._parameters.snapshot, optimizer, taken)

    def after_unannounced(self) -> None:
        """Such a step was taken."""
        if self._context.flags.sampled:
            self._context.isolate(layers.GRADIENT, self._parameters.add_gradients)
            self._context.isolate(layers.CHANGE, self._parameters.measure_updates)

    def clipped(self, norm: Tensor) -> None:
        """Gradients were clipped, and this was their norm before."""
        for guard in (g for guards in self._guards.values() for g in guards):
            guard.clipped(norm)

    def step_ends(self) -> None:
        """All optimizers have stepped that do in this step."""
        isolate, flags = self._context.isolate, self._context.flags
        if self.replicas is not None:
            self.replicas.step_ends()
        if flags.open:
            isolate(REACH, self._reach.measure)
        if self._guards and flags.open:
            isolate(INTERVENTIONS, self._count)
        if flags.deep and self._taylor is not None:
            isolate(RATIO, self._taylor.step_ends)
        if flags.deep and self._sharpness is not None:
            isolate(SHARPNESS, self._sharpness.step_ends)
        if flags.deep and self._jacobian is not None:
            isolate(JACOBIAN, self._jacobian.step_ends)
        if flags.deep:
            isolate(LORA, self._adapters.step_ends)
            isolate(INCREMENTS, self._increments.step_ends)
            isolate(QUANTISERS, self.quantised.measure)
        if flags.deep and flags.phase == 0:
            isolate(TRACKED_BATCH, self.tracked_batch.measure)

    def _check_replicas(self) -> None:
        if self.replicas is None:
            return
        if self.replicas.asked():
            self._context.flags.looks = True
        if self._context.flags.looks:
            self._context.isolate(CHECK, self.replicas.measure)

    def _set_guard(self, optimizer: Any, make: StepGuards) -> None:
        self._guards[id(optimizer)] = ()  # also when they cannot be made: that is reported once
        self._guards[id(optimizer)] = make(optimizer, self._derivative)

    @torch.no_grad()
    def _count(self) -> None:
        for guard in (g for guards in self._guards.values() for g in guards if g.failure):
            self._context.unmeasured("note", "guard", guard.failure)
        device = self._interventions.device
        counts = [g.interventions.to(device, torch.float32) for guards in self._guards.values() for g in guards]
        total = torch.stack(counts).sum() if counts else self._counted
        merge_(HOST_COUNT, self._interventions, torch.stack((torch.ones_like(total), total - self._counted)))
        self._counted = total

    def after(self, optimizer: Any, closure: bool = False, inner: Any = None) -> None:
        """The optimizer has stepped. With a closure its gradients are those of the last call of the closure.

        inner: the optimizer inside it that really steps, and has the state.
        """
        isolate, flags = self._context.isolate, self._context.flags
        if closure:
            isolate(REACH, self._reach.before, optimizer)
        if flags.sampled:
            if closure:
                isolate(layers.GRADIENT, self._parameters.read_gradients, optimizer)
            isolate(layers.GRADIENT, self._parameters.add_gradients)
            self._tell_estimates()
            isolate(layers.CHANGE, self._parameters.measure_updates)
        if flags.deep:
            self._context.isolation.run("parameters", "deep", self._probes.after, inner or optimizer)
        if flags.deep and self._sharpness is not None:
            isolate(SHARPNESS, self._sharpness.after, inner or optimizer)
        if flags.next_phase is not None:
            isolate(LAST_CHANGE, self._probes.after_phase)

    def remove(self) -> None:
        """Remove the hooks of guards and of the derivative."""
        for called in (self._derivative, *(tap.derivative for tap in (self._sharpness, self._jacobian) if tap)):
            if called is not None:
                called.remove()
        for guard in (g for guards in self._guards.values() for g in guards):
            guard.detach()


def has_closure(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Do the arguments of a call of `Optimizer.step` contain a closure that computes the gradients?

    The optimizer itself may be among them.
    """
    return any(callable(x) and not isinstance(x, torch.optim.Optimizer) for x in (*args, kwargs.get("closure")))
