"""The gradients of the outputs of blocks and residual writers."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.hooks.base.probe import PROBES, Need, Probe, on
from stabwatch.hooks.base.views import OutputGradient
from stabwatch.kernels.merge import Aggregates
from stabwatch.kernels.moments import moments
from stabwatch.signals.reductions import DEPTH, MOMENTS

NO_GRADIENT = "its output got no gradient (a frozen part, reentrant checkpointing, or a forward without gradients)"


def _moments(x: OutputGradient) -> Aggregates | None:
    assert x.gradient is not None
    if not x.gradient.numel():
        return None
    found = moments(x.gradient)
    return found if x.scale is None else _unscaled(found, x.scale)


def _unscaled(found: Aggregates, scale: Tensor) -> Aggregates:
    """Moments of the gradient without the loss scale."""
    if isinstance(found, Tensor):
        scale = scale.to(found.device, torch.float32, non_blocking=True).reshape(())
        one = torch.ones_like(scale)
        return found / torch.stack((one, scale.square(), one, scale))
    count, sumsq, bad, peak = found
    factor = scale.item()
    return count, sumsq / factor**2, bad, peak / factor


ACTIVATION_GRADIENT = PROBES.register(
    Probe(
        name="activation_gradient", tap="activation_gradient", reduction=MOMENTS, tier="sampled",
        compute=on(OutputGradient, _moments), needs=(Need("gradient", NO_GRADIENT),), optional=True,
        reported_as="activation_gradient",
    )
)  # fmt: skip
BACKWARD_GROWTH = PROBES.register(
    Probe(
        name="depth", tap="activation_gradient", reduction=DEPTH, tier="sampled", optional=True,
        reported_as="activation_gradient",
    )
)  # fmt: skip
"""Collected by `Stacks` when a step is recorded."""
