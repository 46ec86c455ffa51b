"""All hooks of one watch, installed together and removed together."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from stabwatch.config import Config
from stabwatch.distributed.ranks import Ranks
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import Callback
from stabwatch.hooks.base.tensors import device_of
from stabwatch.hooks.functions import FunctionTaps
from stabwatch.hooks.optimizer_step import StepGuards
from stabwatch.hooks.probes.batches import Batches
from stabwatch.hooks.step_hooks import StepHooks
from stabwatch.runtime.governor import Governor
from stabwatch.runtime.lifetime import weakly
from stabwatch.runtime.model_taps import ModelTaps


@contextmanager
def _no_collection() -> Iterator[None]:
    """What is made in it is kept: to look for garbage among it would take a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Taps:
    """The hooks of a watch: they report events to the session. now: those on the model as it is now.

    Nothing is left behind when one of them cannot be installed.
    """

    def __init__(
        self,
        context: TapContext,
        config: Config,
        loss_fn: Any,
        ranks: Ranks,
        governor: Governor,
        guards: StepGuards | None,
    ) -> None:
        self._context, self._ranks = context, ranks
        self.failed_elsewhere: Mapping[str, int] = {}
        self._made = context, config, ranks, governor, guards, self._failure
        with ExitStack() as undo:
            self.now = self._taps_of_now()
            undo.callback(lambda: self.now.remove())
            self.batches = Batches(context.device)
            FunctionTaps.install(context)
            undo.callback(FunctionTaps.remove, context)
            before, after = weakly(context.events.before_step), weakly(context.events.after_step)
            undo.callback(StepHooks(context.isolation, before, after, weakly(self._tracks)).remove)
            if isinstance(loss_fn, nn.Module):
                seen = Callback("loss", context.isolation, weakly(context.events.loss_module))
                undo.callback(loss_fn.register_forward_hook(seen).remove)
            self._undo = undo.pop_all()

    def _tracks(self, optimizer: Any) -> bool:
        return self.now.parameters.tracks(optimizer)

    def _failure(self, probe: str) -> str | None:
        if probe in self.failed_elsewhere:
            return f"its probe `{probe}` failed on rank {self.failed_elsewhere[probe]}: see the event `error`"
        return f"its probe `{probe}` failed: see the event `error`" if self._context.isolation.errors[probe] else None

    def follow(self, stepped: bool) -> None:
        """The model has changed: watch what it has now. stepped: a step of it was seen."""
        self._context.brackets.update()
        self._context.renew(device_of(self._ranks.model, self._context.device))
        self.now = self._taps_of_now(self.now, stepped)

    def _taps_of_now(self, *before: Any) -> ModelTaps:
        with _no_collection():
            return ModelTaps(*self._made, *before)

    def use(self, guards: StepGuards | None) -> None:
        """Have these guards from the next change of the model on."""
        context, config, ranks, governor, _, failure = self._made
        self._made = context, config, ranks, governor, guards, failure

    def remove(self) -> None:
        """Remove everything."""
        self._undo.close()
