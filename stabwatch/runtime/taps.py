"""All hooks of one watch and the buffer that they write into, installed together and removed together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stabwatch.config import Config
from stabwatch.distributed.flat import note
from stabwatch.distributed.health import RankHealth
from stabwatch.distributed.ranks import Ranks
from stabwatch.distributed.topology import Topology
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import callback
from stabwatch.hooks.base.sites import Target, select_modules
from stabwatch.hooks.forward import ModuleTaps
from stabwatch.hooks.functions import FunctionTaps, kept_references
from stabwatch.hooks.optimizer_step import StepGuards, StepTaps
from stabwatch.hooks.probes.batches import Batches
from stabwatch.hooks.probes.directional import DirectionalDerivative
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.runlog import RecordLayout
from stabwatch.runtime.coverage import MHA, NO_SATURATION, Coverage
from stabwatch.runtime.governor import Governor
from stabwatch.runtime.record import OF_ALL_LAYERS, Assembler
from stabwatch.runtime.step_buffer import StepBuffer


class Taps:
    """The hooks of a watch on a model: they report events to the session, and fill the accumulators of `buffer`.

    Nothing is left behind when one of them cannot be installed.
    """

    def __init__(
        self,
        context: TapContext,
        config: Config,
        model: nn.Module,
        loss_fn: Any,
        ranks: Ranks,
        governor: Governor,
        guards: StepGuards | None,
    ) -> None:
        self._context = context
        note(ranks.model)
        targets = select_modules(model, config.include, config.exclude)
        with ExitStack() as undo:
            context.declare_run()
            self.modules = ModuleTaps(targets, context)
            undo.callback(self.modules.remove)
            owners = [t.name for t in targets if t.name and (t.activation or t.contains) and not t.role.gate]
            self.parameters = ParameterTaps(model, owners, context.device, config.update_bytes)
            self.batches = Batches(context.device)
            derivative = DirectionalDerivative(model) if config.taylor or "taylor" in config.guards else None
            self.steps = StepTaps(
                model, self.modules, self.parameters, context, guards, derivative=derivative, taylor=config.taylor
            )
            undo.callback(self.steps.remove)
            self.buffer = self._register(StepBuffer(context.device))
            self.topology = Topology(
                ranks.model,
                ranks.rank,
                ranks.world if ranks.wanted else 1,
                lambda: self.parameters.tracked,
                self.steps.with_state,
            )
            self.steps.count_only(self.topology.counts)
            self.layout = RecordLayout.build(self.buffer.accumulators)
            self.health = RankHealth(self.layout)
            expected = (*context.run.expected, *self.modules.expected, *self.parameters.expected)
            self.assembler = Assembler(
                self.buffer.accumulators, expected, context.probes, self.health, governor.ask_deep,
                config.attention_limit, lambda: OF_ALL_LAYERS if self.parameters.summed else frozenset(),
            )  # fmt: skip
            sites = tuple(self.modules.sites.values())
            self.names = [site.name for site in sites]
            self.failed_elsewhere: Mapping[str, int] = {}
            self.coverage = Coverage(sites, self.parameters, expected, context.probes, context.reasons, self._failure)
            for what, layer, reason in _blind_spots(targets):
                context.unmeasured(what, layer, reason)
            FunctionTaps.install(context)
            undo.callback(FunctionTaps.remove, context)
            undo.callback(kept_references(model).remove)
            before_step = callback("optimizer_step", context.isolation, context.events.before_step)
            after_step = callback("optimizer_step", context.isolation, context.events.after_step)
            undo.callback(register_optimizer_step_pre_hook(before_step).remove)
            undo.callback(register_optimizer_step_post_hook(after_step).remove)
            if isinstance(loss_fn, nn.Module):
                seen = callback("loss", context.isolation, context.events.loss_module)
                undo.callback(loss_fn.register_forward_hook(seen).remove)
            self._undo = undo.pop_all()

    def _failure(self, probe: str) -> str | None:
        if probe in self.failed_elsewhere:
            return f"its probe `{probe}` failed on rank {self.failed_elsewhere[probe]}: see the event `error`"
        return f"its probe `{probe}` failed: see the event `error`" if self._context.isolation.errors[probe] else None

    def _register(self, buffer: StepBuffer) -> StepBuffer:
        """Give the buffer all accumulators, in the order that a record has."""
        self._context.run.register(buffer)
        self.modules.register(buffer)
        self._context.accumulators.register(buffer)
        self._context.brackets.register(buffer)
        self.steps.register(buffer)
        return buffer

    def remove(self) -> None:
        """Remove everything."""
        self._undo.close()


def _blind_spots(targets: list[Target]) -> Iterable[tuple[str, str, str]]:
    """What is known before the first step not to be measurable: what, where, why."""
    if not any(t.role.nonlinear for t in targets):
        yield "nonlinearity", "", NO_SATURATION
    for t in targets:
        if isinstance(t.module, nn.MultiheadAttention):
            yield "writer", f"{t.name}.out_proj", MHA
