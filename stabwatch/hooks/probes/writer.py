"""Residual writers: the mean mode of their gradient, dead units of their input, and what they add to the stream.

And what skip connections bring into blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.base.probe import PROBES, Need, Probe, on
from stabwatch.hooks.base.views import SkipCall, WriterGradient, WriterOutput
from stabwatch.kernels.mean_mode import dead_units, mean_mode
from stabwatch.kernels.merge import Aggregates
from stabwatch.kernels.moments import moments
from stabwatch.signals import reductions

NO_TOKENS = "its input has no token axis: it is not (batch, tokens, features)"
NO_GRADIENT = "its output needs no gradient (a frozen branch, or reentrant checkpointing)"
NO_TRUNK = "its block gets no tensor as a positional argument"

_NEEDS = (Need("inputs", NO_TOKENS), Need("gradient", NO_GRADIENT))


def _mean_mode(x: WriterGradient) -> Aggregates:
    assert x.inputs is not None and x.gradient is not None
    return mean_mode(x.inputs, x.gradient, x.groups)


def _dead_units(x: WriterGradient) -> Aggregates:
    assert x.inputs is not None
    return dead_units(x.inputs)


def _branch(x: WriterOutput) -> Aggregates:
    assert x.trunk is not None
    return _beside(x.out, x.trunk)


def _beside(x: Tensor, main: Tensor) -> Aggregates:
    """Aggregates of `BRANCH`: of finite numbers."""
    branch, trunk = moments(x.detach()), moments(main.detach())
    return _stack((branch[0] - branch[2], branch[1], trunk[0] - trunk[2], trunk[1]))


def _stack(aggregates: tuple[Any, ...]) -> Aggregates:
    """Numbers on the host stay numbers; those on a device become a tensor."""
    return torch.stack(aggregates) if isinstance(aggregates[0], Tensor) else aggregates


PROBES.register(
    Probe(
        name="mean_mode", tap="writer", reduction=reductions.MEAN_MODE, tier="deep",
        compute=on(WriterGradient, _mean_mode), needs=_NEEDS, round_robin=True, optional=True, reported_as="writer",
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="units", tap="writer", reduction=reductions.UNITS, tier="deep", compute=on(WriterGradient, _dead_units),
        needs=_NEEDS, round_robin=True, optional=True, reported_as="writer",
    )
)  # fmt: skip
BRANCH = PROBES.register(
    Probe(
        name="branch", tap="writer", reduction=reductions.BRANCH, tier="deep", compute=on(WriterOutput, _branch),
        needs=(Need("trunk", NO_TRUNK),), round_robin=True, optional=True,
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="skip", tap="skip", reduction=reductions.BRANCH, tier="deep",
        compute=on(SkipCall, lambda x: _beside(x.skip, x.main)), round_robin=True, per_call=True, optional=True,
    )
)  # fmt: skip
