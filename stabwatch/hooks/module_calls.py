"""Calls of watched modules: makes the views of a call, and has the probes measured that are due.

Inside a compiled graph the calls come from the operators of `compiled.py`, when the graph runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.entry import Callback
from stabwatch.hooks.base.probe import Probe
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import PARTIAL, first_tensor, is_partial, local
from stabwatch.hooks.base.view import SiteView
from stabwatch.hooks.probes.trained_loss import RunningBackward

KEPT = "its backward keeps its own graph (create_graph=True), to be differentiated again"


def measure_call(site: Site, module: nn.Module, args: Any, output: Any, in_graph: bool = False) -> None:
    """A watched module was called with `args` and returned `output`."""
    context = site.context
    for view in site.views:
        probes = context.due(view, site.index)
        if in_graph:  # gradients come to `measure_gradient` there
            probes = tuple(p for p in probes if p.measured_in_graph and not view.of_gradient)
        if probes:
            action = _watch_gradient if view.of_gradient else _measure
            context.isolation.run(view.name, context.flags.tier, action, view, probes, site, module, args, output)


def measure_gradient(site: Site, inputs: Sequence[Tensor], gradient: Tensor) -> None:
    """A module that was called with `inputs` got this gradient of its output, in a compiled graph.

    inputs: of a residual writer with a token axis; empty for others.
    """
    module = site.module()
    for view in site.views:
        probes = site.context.due(view, site.index) if view.of_gradient else ()
        if probes and module is not None:
            site.context.isolation.run(
                view.name, site.context.flags.tier, _measure_in_graph, view, probes, site, module, inputs, gradient
            )


def _measure_in_graph(
    view: type[SiteView],
    probes: Sequence[Probe],
    site: Site,
    module: nn.Module,
    inputs: Sequence[Tensor],
    gradient: Tensor,
) -> None:
    call = view.from_call(site, module, inputs, None)
    if call is not None:
        _measure_gradient(probes, call, gradient)


def _measure(
    view: type[SiteView], probes: Sequence[Probe], site: Site, module: nn.Module, args: Any, output: Any
) -> None:
    made = view.from_call(site, module, args, output)
    if made is None:
        if is_partial(first_tensor(output)):
            site.context.unmeasured("activation", site.name, PARTIAL)
        return
    site.context.measure(probes, made)
    for part in made.parts():
        site.context.measure(site.context.due(type(part), site.index), part)


def _watch_gradient(
    view: type[SiteView], probes: Sequence[Probe], site: Site, module: nn.Module, args: Any, output: Any
) -> None:
    """Measure when the backward brings the gradient of the output. Where it cannot, the probes say what they miss."""
    out = first_tensor(output)
    if out is None or out.numel() == 0:
        return
    call = view.from_call(site, module, args, output)
    assert call is not None
    if not call.waits or not out.requires_grad:
        site.context.measure(probes, call)
    else:
        isolation, tier = site.context.isolation, site.context.flags.tier
        out.register_hook(
            Callback(
                view.name,
                isolation,
                lambda d: isolation.run(view.name, tier, _measure_gradient, probes, call, d.detach()),
            )
        )


def _measure_gradient(probes: Sequence[Probe], call: SiteView, gradient: Tensor) -> None:
    context = call.site.context
    why = PARTIAL if is_partial(gradient) else KEPT if torch.is_grad_enabled() else None
    why = why or call.receive(local(gradient), RunningBackward.scale)
    if why is not None:
        context.unmeasured(call.name, call.place, why)
        return
    context.measure(probes, call)
