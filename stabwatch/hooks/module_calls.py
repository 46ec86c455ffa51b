"""Calls of watched modules: makes the views of a call, and has the probes measured that are due.

Inside a compiled graph the calls come from the operators of `compiled.py`, when the graph runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stabwatch.hooks.base.entry import callback
from stabwatch.hooks.base.layout import as_samples
from stabwatch.hooks.base.probe import Probe
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import PARTIAL, first_local, first_tensor, is_partial, local
from stabwatch.hooks.base.view import SiteView
from stabwatch.hooks.base.views import WriterGradient

SPLIT = "its input and its output are split over ranks in different ways (sequence parallelism)"


def measure_call(site: Site, module: nn.Module, args: Any, output: Any, in_graph: bool = False) -> None:
    """A watched module was called with `args` and returned `output`."""
    context = site.context
    for view in site.views:
        probes = context.due(view, site.index)
        if in_graph:  # gradients come to `measure_gradient` there
            probes = tuple(p for p in probes if p.measured_in_graph and view is not WriterGradient)
        if probes:
            action = _watch_gradient if view is WriterGradient else _measure
            context.isolation.run(view.name, context.flags.tier, action, view, probes, site, module, args, output)


def measure_gradient(site: Site, inputs: Tensor, gradient: Tensor) -> None:
    """A residual writer that was called with `inputs` got this gradient of its output, in a compiled graph."""
    probes = site.context.due(WriterGradient, site.index)
    if probes:
        isolation = site.context.isolation
        isolation.run(
            WriterGradient.name, "deep", lambda: _measure_gradient(probes, _writer_call(site, inputs), gradient)
        )


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
    call = _writer_call(site, first_local(args))
    if call.inputs is None or not out.requires_grad:
        site.context.measure(probes, call)
    else:
        isolation = site.context.isolation
        out.register_hook(
            callback(
                view.name,
                isolation,
                lambda d: isolation.run(view.name, "deep", _measure_gradient, probes, call, d.detach()),
            )
        )


def _writer_call(site: Site, inputs: Tensor | None) -> WriterGradient:
    x = None if inputs is None else as_samples(inputs.detach(), site.role)
    if x is None or x.dim() != 3 or x.shape[1] < 2:
        return WriterGradient(site, None, None)
    return WriterGradient(site, x, None, site.context.token_groups.of(x))


def _measure_gradient(probes: Sequence[Probe], call: WriterGradient, gradient: Tensor) -> None:
    context = call.site.context
    if is_partial(gradient):
        context.unmeasured(call.name, call.site.name, PARTIAL)
        return
    if call.inputs is not None:
        call.gradient = as_samples(local(gradient), call.site.role)
        if call.gradient.shape[:2] != call.inputs.shape[:2]:
            context.unmeasured(call.name, call.site.name, SPLIT)
            return
    context.measure(probes, call)
