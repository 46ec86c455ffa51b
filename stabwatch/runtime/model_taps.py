"""The hooks of a watch that depend on the modules and parameters that the model has now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from stabwatch.config import Config
from stabwatch.distributed.flat import note
from stabwatch.distributed.health import RankHealth
from stabwatch.distributed.layout import room
from stabwatch.distributed.ranks import Ranks
from stabwatch.distributed.topology import Topology
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.naming import unwrap
from stabwatch.hooks.base.sites import Target, select_modules
from stabwatch.hooks.base.structure import Structure
from stabwatch.hooks.forward import ModuleTaps
from stabwatch.hooks.functions import kept_references
from stabwatch.hooks.optimizer_step import StepGuards, StepTaps
from stabwatch.hooks.patching import KeptReferences
from stabwatch.hooks.probes.activation import ACTIVATION
from stabwatch.hooks.probes.attention import BRACKET
from stabwatch.hooks.probes.directional import DirectionalDerivative
from stabwatch.hooks.probes.jacobian import SAMPLES as MAPPED
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.hooks.probes.replicas import ReplicaChecks
from stabwatch.hooks.probes.sharpness import SAMPLES
from stabwatch.runlog import Accumulator, RecordLayout
from stabwatch.runtime.coverage import GRAPH, MHA, NO_SATURATION, SCRIPTED, Coverage
from stabwatch.runtime.governor import Governor
from stabwatch.runtime.record import OF_ALL_LAYERS, Assembler
from stabwatch.runtime.step_buffer import StepBuffer


class ModelTaps:
    """Hooks on modules, the measurements at the optimizer's step, and the layout of what they measure.

    failure: why a probe measured nothing, if it has failed. ranks: its model is watched, with the wrappers around it.
    before: those whose place they take, when the model has changed; what was measured in the open step is taken over.
    stepped: a step of the model was seen.
    """

    modules: ModuleTaps
    parameters: ParameterTaps
    steps: StepTaps
    assembler: Assembler
    _derivative: DirectionalDerivative | None
    _curvature: DirectionalDerivative | None
    _map: DirectionalDerivative | None
    _references: KeptReferences

    def __init__(
        self,
        context: TapContext,
        config: Config,
        ranks: Ranks,
        governor: Governor,
        guards: StepGuards | None,
        failure: Callable[[str], str | None],
        before: ModelTaps | None = None,
        stepped: bool = False,
    ) -> None:
        whole, model = ranks.model, unwrap(ranks.model)
        self._in_records: dict[str, str] = {}
        note(whole)
        targets = select_modules(whole, config.include, config.exclude)
        with ExitStack() as undo:
            context.declare_run()
            self.modules = ModuleTaps(targets, context, None if before is None else before.modules)
            undo.callback(self.modules.remove)
            governor.spread(self.modules.in_turn)
            owners = [t.name for t in targets if t.name and (t.activation or t.contains) and not t.role.gate]
            self.parameters = ParameterTaps(
                whole,
                owners,
                context.device,
                config.update_bytes,
                None if before is None else before.parameters,
                keep=stepped,
            )
            wanted = config.taylor or "taylor" in config.guards
            self._derivative = self._curvature = self._map = None
            if before is not None:
                self._derivative, self._curvature, self._map = before._derivative, before._curvature, before._map
            else:
                if wanted:
                    self._derivative = DirectionalDerivative(model, isolation=context.isolation)
                if config.sharpness:
                    self._curvature = DirectionalDerivative(model, SAMPLES, context.isolation)
                if config.jacobian:
                    self._map = DirectionalDerivative(model, MAPPED, context.isolation)
            several = ranks.wanted and ranks.world > 1
            replicas = ReplicaChecks(whole, owners, context.device) if several else None
            self.steps = StepTaps(
                model, self.modules, self.parameters, context, guards, derivative=self._derivative,
                taylor=config.taylor, sharpness=self._curvature, jacobian=self._map, replicas=replicas,
                before=None if before is None else before.steps,
            )  # fmt: skip
            undo.callback(self.steps.remove)
            self.buffer = self._register(context, StepBuffer(context.device))
            if before is not None:
                self.buffer.adopt(before.buffer)
            self.topology = Topology(
                whole, ranks.rank, ranks.world if ranks.wanted else 1,
                lambda: self.parameters.tracked, self.steps.with_state, lambda: ranks.stage, ranks.numbers[0],
            )  # fmt: skip
            if replicas is not None:
                replicas.compares, replicas.in_no_sync = self.topology.has_replicas, lambda: ranks.in_no_sync
            self.layout = RecordLayout.without_series(self.buffer.accumulators)
            self.health = RankHealth(self.layout)
            record = RecordLayout.without_series((*self.layout.accumulators, *self.health.sources))
            self.steps.count_only(
                self.topology.counts,
                self.topology.place_of,
                lambda: room(record, len(ranks.stage.ranks) if ranks.stage else 1),
            )
            expected = (*context.run.expected, *self.modules.expected, *self.parameters.expected)

            def assembler(accumulators: Iterable[Accumulator], health: RankHealth, old: Assembler | None) -> Assembler:
                return Assembler(
                    accumulators, expected, context.probes, health, governor.ask_deep, config.attention_limit,
                    lambda: OF_ALL_LAYERS if self.parameters.unsummed else frozenset(), old,
                )  # fmt: skip

            self._assembler = assembler
            self.assembler = assembler(
                self.buffer.accumulators, self.health, None if before is None else before.assembler
            )
            sites = tuple(self.modules.sites.values())
            self.names = [site.name for site in sites]
            left = self.topology.is_left
            self.coverage = Coverage(
                sites, self.parameters, expected, context.probes, context.reasons, failure, left,
                lambda: context.forwards > 0,
            )  # fmt: skip
            for what, layer, reason in _blind_spots(targets):
                context.unmeasured(what, layer, reason)
            if before is not None:
                before._references.remove()
            self._references = kept_references(whole)
            undo.callback(self._references.remove)
            self.structure = Structure(whole, self.parameters.ids)
            self._undo = undo.pop_all()

    def _register(self, context: TapContext, buffer: StepBuffer) -> StepBuffer:
        """Give the buffer all accumulators, in the order that a record has."""
        context.run.register(buffer)
        self.modules.register(buffer)
        context.accumulators.register(buffer)
        context.brackets.register(buffer)
        self.steps.register(buffer)
        return buffer

    def widen(self, accumulators: Iterable[Accumulator], health: RankHealth, layers: Mapping[str, str]) -> None:
        """Records have these accumulators: also those of other stages of a pipeline.

        layers: names in the records of the layers of this model.
        """
        self.assembler = self._assembler(accumulators, health, self.assembler)
        self._in_records = dict(layers)

    def recorded(self, measured: set[Accumulator]) -> set[Accumulator]:
        """Of what this rank has measured, what is in records, with the names of records."""
        named = {a._replace(site=self._in_records.get(a.site, a.site)) for a in measured}
        return self.assembler.recorded(named)

    def report(self, fired: set[Accumulator]) -> dict[str, Any]:
        """The data of a `coverage` event. fired: what was measured, with the names of records."""
        if not self._in_records:
            return self.coverage.report(fired)
        mine = {name: layer for layer, name in self._in_records.items()}
        report = self.coverage.report({a._replace(site=mine.get(a.site, a.site)) for a in fired})
        for entry in (*report["missing"], *report["unmeasured"]):
            entry["site"] = self._in_records.get(entry["site"], entry["site"])
        return report

    def remove(self) -> None:
        """Remove everything from the model."""
        self._undo.close()


def _blind_spots(targets: list[Target]) -> Iterable[tuple[str, str, str]]:
    """What is known before the first step not to be measurable: what, where, why."""
    if not any(t.role.nonlinear for t in targets):
        yield "nonlinearity", "", NO_SATURATION
    for t in targets:
        if isinstance(t.module, torch.fx.GraphModule):
            yield from ((ACTIVATION.tap, name, GRAPH) for name in _not_called(t.name, t.module, targets))
        if isinstance(t.module, torch.jit.ScriptModule):
            yield from ((tap, t.name, SCRIPTED) for tap in ("forward", ACTIVATION.tap, BRACKET.report_key))
        if isinstance(t.module, nn.MultiheadAttention):
            yield "writer", f"{t.name}.out_proj", MHA


def _not_called(name: str, graph: torch.fx.GraphModule, targets: list[Target]) -> Iterator[str]:
    """The watched modules inside of a graph that its code does not call."""
    called = tuple(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    start = f"{name}." if name else ""
    for inner in (t.name for t in targets if t.name != name and t.name.startswith(start)):
        target = inner.removeprefix(start)
        if not any(target == c or target.startswith(f"{c}.") for c in called):
            yield inner
