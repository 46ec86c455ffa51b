"""Where plugins are called: at module outputs, at the optimizer step, and at `cross_entropy`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from stabwatch.hooks.base.accumulators import Accumulators
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import first_tensor, local
from stabwatch.plugins import PLUGINS, Plugin
from stabwatch.runlog import Accumulator


class PluginTaps:
    """The plugins that were registered when the watch was attached, and their cells.

    counts: does this rank count a parameter? Another rank may hold the same.
    """

    def __init__(
        self, sites: Iterable[Site], tracked: Iterable[tuple[str, str, nn.Parameter]], device: Any, watch: Any
    ) -> None:
        self._watch = watch
        self.counts: Callable[[nn.Parameter], bool] = lambda parameter: True
        self._plugins = tuple(PLUGINS.values())
        tracked = list(tracked)
        self._layers = {id(p): layer for layer, _, p in tracked}
        layers = list(dict.fromkeys(self._layers.values()))
        shown = [site.name for site in sites if site.activation is not None]
        places = {"activation": shown, "gradient": layers, "weight": layers, "logits": [""]}
        self.store = Accumulators(
            (
                Accumulator(p.signal.tap, place, p.signal.reduction)
                for p in self._plugins
                for place in places[p.signal.tap]
            ),
            device,
        )
        watch.flags.plugins = any(p.signal.tap == "activation" and p.signal.tier == "always" for p in self._plugins)

    def activation(self, site: Site, output: Any) -> None:
        """A watched module gave this output."""
        for plugin in self._at("activation"):
            x = first_tensor(output)
            if x is not None and x.numel():
                self._run(plugin, site.name, x)

    def parameters(self, optimizer: Any) -> None:
        """The optimizer is about to step."""
        gradients, weights = self._at("gradient"), self._at("weight")
        if not gradients and not weights:
            return
        for p in (p for group in optimizer.param_groups for p in group["params"] if id(p) in self._layers):
            if not self.counts(p):
                continue
            for plugin in gradients if p.grad is not None else ():
                self._run(plugin, self._layers[id(p)], local(p.grad))
            for plugin in weights:
                self._run(plugin, self._layers[id(p)], local(p))

    def logits(self, logits: Tensor, target: Tensor) -> None:
        """`cross_entropy` was called."""
        for plugin in self._at("logits"):
            self._run(plugin, "", logits, target)

    def _at(self, tap: str) -> list[Plugin]:
        return [p for p in self._plugins if p.signal.tap == tap and self._watch.flags.allows(p.signal.tier)]

    def _run(self, plugin: Plugin, place: str, *tensors: Tensor) -> None:
        self._watch.isolation.run(
            f"plugin {plugin.signal.name}", plugin.signal.tier, self._update, plugin, place, tensors
        )

    def _update(self, plugin: Plugin, place: str, tensors: tuple[Tensor, ...]) -> None:
        self.store.update(plugin.signal.tap, place, plugin.signal.reduction, plugin.partials(*tensors))
