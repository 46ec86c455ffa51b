"""All taps of one watch and the buffer that they write into, put up together and taken down together."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stabwatch.distributed.health import RankHealth
from stabwatch.distributed.ranks import Ranks
from stabwatch.distributed.topology import Topology
from stabwatch.hooks.base.sites import Target, select_modules
from stabwatch.hooks.base.tensors import device_of
from stabwatch.hooks.forward import ModuleTaps
from stabwatch.hooks.functions import FunctionTaps
from stabwatch.hooks.optimizer_step import StepGuards, StepTaps
from stabwatch.hooks.probes.attention import Brackets
from stabwatch.hooks.probes.batches import Batches
from stabwatch.hooks.probes.custom import PluginTaps
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.hooks.probes.run import RunAccumulators
from stabwatch.runlog import RecordLayout
from stabwatch.runtime.coverage import MHA, NO_SATURATION, Coverage
from stabwatch.runtime.governor import Governor
from stabwatch.runtime.record import Assembler
from stabwatch.runtime.step_buffer import StepBuffer


class Taps:
    """The taps of a watch on a model: they call the watch, and fill the cells of `buffer`.

    Nothing is left behind when one of them cannot be put up.
    """

    def __init__(
        self, watch: Any, model: nn.Module, loss_fn: Any, ranks: Ranks, governor: Governor, guards: StepGuards | None
    ) -> None:
        device = device_of(model, torch.device("cpu"))
        config = watch.config
        chosen = select_modules(model, config.include, config.exclude)
        with ExitStack() as undo:
            self.modules = ModuleTaps(chosen, watch.flags, watch, device)
            undo.callback(self.modules.remove)
            owners = [c for c in chosen if c.path and (c.activation or list(c.module.children())) and not c.role.gate]
            self.parameters = ParameterTaps(model, [c.path for c in owners], device, config.update_bytes)
            self.batches = Batches(device)
            self.cells = RunAccumulators(device)
            self.brackets = Brackets(self.modules.attention_names, device)
            self.plugins = PluginTaps(self.modules.sites.values(), self.parameters.tracked, device, watch)
            self.steps = StepTaps(model, self.modules, self.parameters, self.plugins, device, watch, guards)
            undo.callback(self.steps.remove)
            self.buffer = self._register(StepBuffer(device))
            self.topology = Topology(
                ranks.model, ranks.rank, ranks.world if ranks.wanted else 1, self.parameters.tracked
            )
            self.steps.count_only(self.topology.counts)
            self.layout = RecordLayout.build(self.buffer.cells)
            self.health = RankHealth(self.layout)
            sites = self.modules.sites.values()
            shown = [cell for site in sites for cell in site.fields() if cell.tap == "activation"]
            expected = (*self.cells.expected, *shown, *self.parameters.cells)
            self.assembler = Assembler(
                self.buffer.cells, expected, self.health, governor.ask_deep, config.attention_limit
            )
            self.names = [site.name for site in sites]
            self.coverage = Coverage(sites, self.parameters, expected)
            for what, layer, reason in _blind_spots(chosen):
                self.coverage.unmeasured(what, layer, reason)
            FunctionTaps.install()
            undo.callback(FunctionTaps.remove)
            undo.callback(register_optimizer_step_pre_hook(watch.before_step).remove)
            undo.callback(register_optimizer_step_post_hook(watch.after_step).remove)
            if isinstance(loss_fn, nn.Module):
                undo.callback(loss_fn.register_forward_hook(watch.loss_module).remove)
            self._undo = undo.pop_all()

    def _register(self, buffer: StepBuffer) -> StepBuffer:
        """Give the buffer all cells, in the order that a record has."""
        self.cells.register(buffer)
        self.modules.register(buffer)
        buffer.add(self.brackets.cells, lambda: self.brackets.matrix)
        self.plugins.store.register(buffer)
        self.steps.register(buffer)
        return buffer

    def remove(self) -> None:
        """Take everything down."""
        self._undo.close()


def _blind_spots(chosen: list[Target]) -> Iterable[tuple[str, str, str]]:
    """What is known before the first step not to be measurable: what, where, why."""
    if not any(c.role.nonlinear for c in chosen):
        yield "nonlinearity", "", NO_SATURATION
    for c in chosen:
        if isinstance(c.module, nn.MultiheadAttention):
            yield "writer", f"{c.name}.out_proj", MHA
