"""The moments of every watched module's output."""

from __future__ import annotations

from typing import Any

import torch

from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import first_local, first_tensor
from stabwatch.kernels.moments import update_moments
from stabwatch.kernels.where import is_fake, tracing
from stabwatch.signals.reductions import MOMENTS

NO_TENSOR = (
    "it returned no floating-point tensor that is known (None, a generator, sparse, nested or complex numbers, say)"
)
NO_ELEMENTS = "its output has no elements"
TRANSFORMED = (
    "it is called inside of a transform (`torch.func`, `vmap`) or while it is traced, where nothing is measured"
)
OUTSIDE = "it was called outside of the model's own forward (by a wrapper of the model, say), where nothing is measured"

ACTIVATION = PROBES.register(Probe(name="activation", tap="activation", reduction=MOMENTS, tier="sampled"))
"""Collected by `measure`: an accumulator of each site is updated in place, also by compiled graphs."""


def measure(site: Site, output: Any) -> None:
    """Add the moments of a module's output to the site's accumulator."""
    x = first_tensor(output) if tracing() else first_local(output)
    if x is None and not tracing():
        site.context.unmeasured(ACTIVATION.tap, site.name, NO_TENSOR)
    if x is not None and not tracing() and x.numel() == 0:
        site.context.unmeasured(ACTIVATION.tap, site.name, NO_ELEMENTS)
    if x is None or x.numel() == 0 or site.activation is None or (not tracing() and is_fake(x)):
        return
    with torch.no_grad():
        if not tracing() and site.activation.device != x.device:
            site.activation = site.context.strays.on(x.device, MOMENTS, site.activation)
        update_moments(x.detach(), site.activation)
