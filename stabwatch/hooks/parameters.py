"""Probes of parameters at the optimizer's step: makes their views, and measures layers in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.copies import Copies
from stabwatch.hooks.base.parameter_views import (
    PARAMETER_VIEWS,
    ParameterChange,
    ParameterGradient,
    ParameterView,
    ParameterWeight,
    WholeGradient,
)
from stabwatch.hooks.base.probe import Probe
from stabwatch.hooks.base.spread_gradients import only_moments
from stabwatch.hooks.base.tensors import SPREAD, gradient_shard, is_elsewhere, local
from stabwatch.hooks.base.tracked import TrackedParameter
from stabwatch.hooks.probes.last_update import Key, LastChanges
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.hooks.probes.spectra import UPDATE_SPECTRUM, WEIGHT_SPECTRUM, Spectra, of_updates, of_weights
from stabwatch.hooks.probes.weights import SHARDED


@dataclass
class Member:
    """A parameter, its layer's index among those that are measured in turn, and the parameter's spectra."""

    tracked: TrackedParameter
    index: int
    spectra: Spectra

    @property
    def layer(self) -> str:
        """Name of its layer."""
        return self.tracked.layer

    @property
    def parameter(self) -> nn.Parameter:
        """What the optimizer steps."""
        return self.tracked.parameter

    @property
    def shape(self) -> torch.Size:
        """That of the whole parameter."""
        return self.tracked.shape or self.parameter.shape

    @property
    def key(self) -> Key:
        """Tells it from all others, also where a flat parameter has several."""
        return id(self.parameter), self.tracked.name

    @property
    def weight(self) -> Tensor:
        """This rank's shard."""
        return self.tracked.of(self.parameter)

    def read(self) -> Tensor:
        """The same, for later."""
        return self.weight

    @property
    def gradient(self) -> Tensor | None:
        """This rank's shard of it; None where there is none, or only a summand."""
        grad = gradient_shard(self.parameter)
        return None if grad is None else self.tracked.of(grad)

    def state(self, optimizer: Any) -> Mapping[str, Any]:
        """The optimizer's state of it."""
        state: Mapping[str, Any] = optimizer.state.get(self.parameter, {})
        if self.tracked.part is None:
            return state
        size = local(self.parameter).numel()
        return {
            name: self.tracked.of(x) if isinstance(x, Tensor) and local(x).numel() == size and size > 1 else x
            for name, x in state.items()
        }


class ParameterProbes:
    """The parameters of a model, and the probes of `ParameterWeight`, `ParameterGradient` and `ParameterChange`.

    Those that are measured in turn get the parameters of the layers that are due, and all others get every parameter.
    counts: whether this rank counts a parameter. Another rank may hold the same one and count it. with_state: layers of
    whose optimizer's state this rank has a part; None where every rank has all of it.
    before: those whose place they take, when the model has changed.
    """

    def __init__(self, parameters: ParameterTaps, context: TapContext, before: ParameterProbes | None = None) -> None:
        self._context = context
        self.counts: Callable[[nn.Parameter], bool] = lambda parameter: True
        self._parameters = parameters
        self.with_state: frozenset[str] | None = None
        self._find()
        for layer in self._index:
            context.declare_layer(layer)
        known = {} if before is None else {(id(m.parameter), m.tracked.name): m for m in before._every()}
        for m in self._every():
            old = known.get((id(m.parameter), m.tracked.name))
            if old is not None and old.parameter is m.parameter and old.spectra.names == m.spectra.names:
                m.spectra = old.spectra
            for probe in (WEIGHT_SPECTRUM, UPDATE_SPECTRUM):
                context.accumulators.add(probe.accumulator(name) for name in m.spectra.names)
        self._copies = Copies()
        self._before: list[tuple[Member, Tensor, ParameterGradient]] = []
        self._last = LastChanges()

    def _find(self) -> None:
        self._tracked = self._parameters.tracked
        floating = [t for t in self._tracked if t.parameter.is_floating_point()]
        self._index = {layer: i for i, layer in enumerate(dict.fromkeys(t.layer for t in floating))}
        self._members: dict[int, list[Member]] = {}
        for t in floating:
            found = Member(t, self._index[t.layer], Spectra(t.name, t.shape, t.module))
            self._members.setdefault(id(t.parameter), []).append(found)

    def _every(self) -> Iterable[Member]:
        return (m for members in self._members.values() for m in members)

    @property
    def wanted(self) -> bool:
        """Is anything to be measured before a step?"""
        flags = self._context.flags
        return flags.deep or (flags.open and any(self._context.due(view) for view in PARAMETER_VIEWS))

    @torch.no_grad()
    def before(self, optimizer: Any, closure: bool = False) -> None:
        """The optimizer is about to step: weights and gradients; the parameters that are due are copied.

        Before a step with a closure the gradients are those of the last step, and are not measured.
        """
        if self._tracked is not self._parameters.tracked:  # other parameters took their place
            self._find()
        owners = getattr(optimizer, "_param_to_rank", None)  # ZeroRedundancyOptimizer
        if self.with_state is None and owners is not None:
            mine = {id(p) for p, rank in owners.items() if rank == optimizer.rank}
            self.with_state = frozenset(t.layer for t in self._tracked if id(t.parameter) in mine)
        due = self._due(optimizer, self._context.flags.phase, closure) if self._context.flags.deep else []
        copies = self._copies.of([m.weight for m in due])
        self._measure(ParameterWeight, self._weights(due), lambda: self._weights(self._of(optimizer)))
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales inside its own kernel
        scale = scale if isinstance(scale, Tensor) else None
        gradients = self._gradients(due, scale, closure)
        self._before = list(zip(due, copies, gradients, strict=True))
        for m in due:
            if is_elsewhere(m.parameter):
                self._context.unmeasured("note", "spread gradients", only_moments(m.tracked.name))
        self._measure(
            ParameterGradient,
            [g for g in gradients if not is_elsewhere(g.parameter)],
            lambda: self._gradients(self._with_whole_gradient(optimizer), scale, closure),
        )
        for probe in self._context.due(WholeGradient):
            self._context.measure_each(probe, self._whole(optimizer, closure))

    @torch.no_grad()
    def after(self, optimizer: Any) -> None:
        """The optimizer has stepped: what it did to the parameters that were copied, and its state."""
        before, self._before = [each for each in self._before if each[0].weight.shape == each[1].shape], []
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        changes = [
            self._change(m, old, gradient, m.state(optimizer), groups.get(id(m.parameter), {}))
            for m, old, gradient in before
        ]
        self._measure(ParameterChange, changes, lambda: ())
        self._context.isolate(
            WEIGHT_SPECTRUM, self._spectra, [(m, c) for (m, _, _), c in zip(before, changes, strict=True)]
        )

    @torch.no_grad()
    def before_phase(self, optimizer: Any, phase: int) -> None:
        """The next step measures this phase: copy some numbers of its parameters, to see what this step does."""
        self._last.snapshot((m.key, m.read) for m in self._due(optimizer, phase))

    def after_phase(self) -> None:
        """Keep what the step did to them until the next step."""
        self._last.keep(self._context.step)

    def _measure(
        self, view: type[ParameterView], due: Sequence[ParameterView], every: Callable[[], Sequence[ParameterView]]
    ) -> None:
        """The probes of a view that are measured now, in the order of registration."""
        everything: Sequence[ParameterView] | None = None
        for probe in self._context.of(view):
            if probe.round_robin and due:
                self._context.measure_each(probe, due)
            elif not probe.round_robin and self._context.flags.allows(probe.tier):
                everything = every() if everything is None else everything
                self._context.measure_each(probe, everything)

    def _weights(self, members: Iterable[Member]) -> list[ParameterWeight]:
        return [ParameterWeight(m.layer, m.parameter, m.weight) for m in members]

    def _gradients(self, members: Iterable[Member], scale: Tensor | None, closure: bool) -> list[ParameterGradient]:
        return [
            ParameterGradient(m.layer, m.parameter, m.weight, None if closure else m.gradient, m.shape, scale)
            for m in members
        ]

    def _whole(self, optimizer: Any, closure: bool) -> list[WholeGradient]:
        """One view per device."""
        if closure:
            return [WholeGradient(None, ())]
        members = self._with_gradient(optimizer)
        if any(is_elsewhere(m.parameter) for m in members):
            self._context.unmeasured("descent", "", SPREAD)
            return []
        pairs = [(m.gradient, m.weight) for m in members if m.gradient is not None and _dense(m.gradient)]
        views = []
        for device in dict.fromkeys(w.device for _, w in pairs):
            gradients, weights = zip(*(pair for pair in pairs if pair[1].device == device), strict=True)
            views.append(WholeGradient(gradients, weights))
        return views

    def _change(self, m: Member, old: Tensor, gradient: ParameterGradient, state: Any, group: Any) -> ParameterChange:
        weight = m.weight
        return ParameterChange(
            m.layer, m.parameter, weight, old, weight.float() - old.float(), state, group,
            gradient.invariant, self._last.take(m.key, self._context.step),
        )  # fmt: skip

    def _spectra(self, changes: list[tuple[Member, ParameterChange]]) -> None:
        whole = [(m.spectra, c) for m, c in changes if c.weight.shape == m.shape and m.spectra.names]
        for spectra, aggregates in of_weights([(spectra, c.weight) for spectra, c in whole]):
            self._update(WEIGHT_SPECTRUM, spectra, aggregates)
        for spectra, aggregates in of_updates([(spectra, c.change) for spectra, c in whole]):
            self._update(UPDATE_SPECTRUM, spectra, aggregates)
        for m, c in changes:
            if c.weight.shape != m.shape:
                for name in m.spectra.names:
                    self._context.unmeasured(WEIGHT_SPECTRUM.report_key, name, SHARDED)

    def _update(self, probe: Probe, spectra: Spectra, aggregates: Tensor) -> None:
        for name, row in zip(spectra.names, aggregates, strict=True):
            self._context.accumulators.update(probe.accumulator(name), row)

    def _due(self, optimizer: Any, phase: int, closure: bool = False) -> list[Member]:
        phases = self._context.flags.phases
        members = self._of(optimizer) if closure else self._with_gradient(optimizer)
        return [m for m in members if m.index % phases == phase]

    def _with_whole_gradient(self, optimizer: Any) -> list[Member]:
        return [m for m in self._with_gradient(optimizer) if not is_elsewhere(m.parameter)]

    def _with_gradient(self, optimizer: Any) -> list[Member]:
        return [m for m in self._of(optimizer) if m.parameter.grad is not None]

    def _of(self, optimizer: Any) -> list[Member]:
        params = (p for group in optimizer.param_groups for p in group["params"])
        return [m for p in params if id(p) in self._members and self.counts(p) for m in self._members[id(p)]]


def _dense(gradient: Tensor | None) -> bool:
    return gradient is not None and not gradient.is_sparse and gradient.numel() > 0
