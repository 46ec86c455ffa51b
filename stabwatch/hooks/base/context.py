"""What all hooks of one watch share: what is measured now, where it goes, and to whom events are reported."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.accumulators import Accumulators
from stabwatch.hooks.base.actions import Actions
from stabwatch.hooks.base.brackets import Brackets
from stabwatch.hooks.base.evaluations import Evaluations
from stabwatch.hooks.base.flags import MeasurementFlags
from stabwatch.hooks.base.isolation import ErrorReport, Isolation
from stabwatch.hooks.base.loss_call import LossCall
from stabwatch.hooks.base.model_input import ModelInput
from stabwatch.hooks.base.parameter_views import PARAMETER_VIEWS, WholeGradient
from stabwatch.hooks.base.parts import Parts
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.reasons import Reasons
from stabwatch.hooks.base.run_accumulators import RunAccumulators
from stabwatch.hooks.base.site_accumulators import Strays
from stabwatch.hooks.base.token_groups import TokenGroups
from stabwatch.hooks.base.trace import ForwardTrace
from stabwatch.hooks.base.view import View
from stabwatch.hooks.base.views import SITE_VIEWS, AttentionCall, LogitsCall
from stabwatch.kernels.merge import Aggregates
from stabwatch.runlog import Accumulator

if TYPE_CHECKING:
    from stabwatch.hooks.base.sites import Site


class TapEvents(Protocol):
    """What the hooks report to the session: where the training loop is."""

    def forward_begins(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """A training forward of the model starts, with these inputs; `named` are those given by keyword."""

    def forward_ended(self, output: Any) -> None:
        """A training forward of the model has ended."""

    def loss_module(self, module: nn.Module, args: Any, output: Any) -> None:
        """The module that computes the loss was called."""

    def backward_begins(self, roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> None:
        """A backward pass is about to run, of whatever model, from these roots with these gradients."""

    def backward_ended(self, roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> bool:
        """It has run, from these roots with these gradients; returns whether it reached this model's parameters."""

    def backward_unclear(self, roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> None:
        """It reached no watched parameters that can be compared, and this is the only watch."""

    def gradients_taken(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None] | None, inputs: Sequence[Any]
    ) -> None:
        """`torch.autograd.grad` returned the gradients of these outputs for these inputs."""

    def clips(self, parameters: Sequence[Tensor]) -> None:
        """`clip_grad_norm_` was called for these parameters, and is about to scale their gradients."""

    def clipped(
        self, parameters: Sequence[Tensor], norm: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """`clip_grad_norm_` was called for these parameters, with these arguments, and returned this norm."""

    def values_clipped(self, parameters: Sequence[Tensor], limit: float) -> None:
        """`clip_grad_value_` was called for these parameters, with this limit."""

    def scaler_updated(self, scaler: Any, stepped: set[int]) -> None:
        """`GradScaler.update` was called, after steps of the optimizers with these ids."""

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """An optimizer is about to step."""

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """An optimizer has stepped."""

    def stage_called(self, stage: Any, around: list[nn.Module]) -> None:
        """A stage of a pipeline, of whatever model, computes a micro-batch.

        around: gets the model, if the stage's module is only a part of it.
        """

    def stage_loss(self, stage: Any, loss: Tensor) -> None:
        """The last stage has computed the gradients of this loss of a micro-batch."""

    def gradients_divided(self, stage: Any, factor: float) -> None:
        """The gradients of a stage were divided, for the mean over its micro-batches."""

    def replaced(self) -> None:
        """Another watch takes over the model."""


class TapContext:
    """The shared state of the hooks of one watch.

    events: to whom they report, by a weak reference: what torch keeps of ours must not keep the model.

    probes: those that were registered when it was made; others that are registered later are not measured.
    accumulators, run, brackets: where aggregates go on the device. strays: those of sites that have moved.
    reasons: why something was not measured.
    step: number of the open step, from 0. forwards: training forwards of the model so far. actions: calls
    without gradients since the step before. looped: names of modules that were seen to be called several
    times in one forward. generator: for everything that probes draw at random.
    thread: the one that called the model last in training, 0 before one did.
    passes: exceptions of the session that are meant for the user. trace: the forwards since the last backward pass.
    """

    def __init__(
        self,
        events: TapEvents,
        report: ErrorReport,
        device: torch.device,
        passes: tuple[type[BaseException], ...] = (),
    ) -> None:
        self.events: TapEvents = weakref.proxy(events)
        self.flags = MeasurementFlags()
        self.isolation = Isolation(report, passes=passes)
        self.token_groups = TokenGroups()
        self.input = ModelInput()
        self.trace = ForwardTrace()
        self.reasons = Reasons()
        self.run = RunAccumulators(device)
        self.generator = torch.Generator().manual_seed(0)
        self.step = 0
        self.thread = 0
        self.loss_call: LossCall | None = None
        self.keeps_loss_call = False
        """Somebody calls the loss once more."""
        self.forwards = 0
        self.parts = Parts()
        self.actions = Actions()
        self.evaluations = Evaluations(self.isolation)
        self.looped: dict[str, None] = {}
        self.probes = tuple(PROBES)
        self._in_turn: dict[type[View], tuple[Probe, ...]] = {}
        self._others: dict[type[View], tuple[Probe, ...]] = {}
        self.renew(device)
        for probe in self.probes:
            if probe.compute is not None:
                table = self._in_turn if probe.round_robin else self._others
                table[probe.compute.view] = (*table.get(probe.compute.view, ()), probe)

    def renew(self, device: torch.device) -> None:
        """Forget all places, to declare those of a model that has changed, or moved to this device."""
        self.device = device
        self.accumulators = Accumulators(device)
        self.strays = Strays()
        self.run = self.run.renewed(device)
        self.brackets = Brackets(device)
        self._declared: dict[tuple[tuple[str, str], str], tuple[Accumulator, ...]] = {}

    def unmeasured(self, what: str, place: str, reason: str) -> None:
        """Note why something cannot be measured; the coverage report says it once."""
        self.reasons.note(what, place, reason)

    def isolate(self, probe: Probe, action: Callable[..., Any], *args: Any) -> None:
        """Call `action(*args)` under the name and tier of a probe; what it raises is caught and counted."""
        self.isolation.run(probe.name, probe.tier, action, *args)

    def declare_site(self, site: Site) -> None:
        """Make the accumulators of all probes that get views of a site."""
        for view in SITE_VIEWS:
            if view.seen_at(site):
                self._declare(view, site, view.place_of(site))

    def declare_layer(self, layer: str) -> None:
        """Make the accumulators of all probes of the parameters of a layer."""
        for view in PARAMETER_VIEWS:
            self._declare(view, layer, layer)

    def declare_run(self) -> None:
        """Make the accumulators of all probes of the run as a whole."""
        for view in (LogitsCall, WholeGradient):
            self._declare(view, None, "")

    def _declare(self, view: type[View], target: Any, place: str) -> None:
        for probe in self.of(view):
            mine = self._declared[probe.key, place] = probe.accumulators(target, place)
            self.accumulators.add(mine)

    def takes_turns(self, site: Site) -> bool:
        """Is anything at this site measured in turn? Attention has an order of its own."""
        return any(self._in_turn.get(view) and view.seen_at(site) for view in SITE_VIEWS if view is not AttentionCall)

    def of(self, view: type[View]) -> tuple[Probe, ...]:
        """All probes of a view."""
        return self._in_turn.get(view, ()) + self._others.get(view, ())

    def due(self, view: type[View], index: int | None = None) -> tuple[Probe, ...]:
        """Probes of a view that are measured now, at the site with this index among those that are measured in turn."""
        in_turn = self._in_turn.get(view, ()) if self.flags.is_due(index) else ()
        others = self._others.get(view)
        return in_turn if others is None else in_turn + tuple(p for p in others if self.flags.allows(p.tier))

    def measure(self, probes: Iterable[Probe], view: View) -> None:
        """Call probes with a view, each isolated, and merge what they return."""
        for probe in probes:
            self.isolation.run(probe.name, probe.tier, self._measure, probe, view)

    def measure_in_graph(self, view: type[View], index: int | None, *facts: Any) -> None:
        """Make a view of a call inside a compiled graph, while the graph runs, and measure the probes that are due."""
        probes = [probe for probe in self.due(view, index) if probe.measured_in_graph]
        if probes:
            self.isolation.run(view.name, "deep", lambda: self.measure(probes, view(*facts)))

    def measure_each(self, probe: Probe, views: Sequence[View]) -> None:
        """Call one probe with several views; an error ends it for all of them."""
        self.isolation.run(probe.name, probe.tier, self._measure_each, probe, views)

    @torch.no_grad()
    def _measure_each(self, probe: Probe, views: Sequence[View]) -> None:
        assert probe.compute is not None
        if probe.compute.together is None:
            for view in views:
                self._measure(probe, view)
            return
        views = [view for view in views if self._has_all(probe, view)]
        for view, aggregates in zip(views, probe.compute.together(views), strict=True):
            self._keep(probe, view, aggregates)

    @torch.no_grad()
    def _measure(self, probe: Probe, view: View) -> None:
        assert probe.compute is not None
        if self._has_all(probe, view):
            self._keep(probe, view, probe.compute.function(view))

    def _has_all(self, probe: Probe, view: View) -> bool:
        """Has the view what the probe needs? If not, it is said."""
        missing = next((need for need in probe.needs if getattr(view, need.attribute) is None), None)
        if missing is not None:
            self.unmeasured(probe.report_key, view.place, missing.reason)
        return missing is None

    def _keep(self, probe: Probe, view: View, aggregates: Aggregates | None) -> None:
        if aggregates is None:
            return
        declared = self._declared.get((probe.key, view.place))
        if not declared:  # also where the module is no part of the model any more
            return
        if isinstance(aggregates, Tensor) and aggregates.dim() > 1:
            self.accumulators.update_all(declared[0], aggregates)
        else:
            self.accumulators.update(declared[0], aggregates)
