"""Activation functions: the share of their inputs at which they are flat."""

from __future__ import annotations

from stabwatch.hooks.base.probe import PROBES, Need, Probe, on
from stabwatch.hooks.base.side_effects import call_isolated
from stabwatch.hooks.base.views import NonlinearityCall
from stabwatch.kernels.merge import Partials
from stabwatch.kernels.saturation import saturation
from stabwatch.signals.reductions import SATURATION

IN_PLACE = "it works in place: its input is overwritten before it can be read"


def _saturation(x: NonlinearityCall) -> Partials | None:
    """The slope at some of the inputs, found by calling the module's `forward` on them again."""
    return None if x.rows is None else saturation(lambda rows: call_isolated(x.module, rows), x.rows)


PROBES.register(
    Probe(
        name="saturation", tap="nonlinearity", reduction=SATURATION, tier="deep",
        compute=on(NonlinearityCall, _saturation), needs=(Need("out_of_place", IN_PLACE),), round_robin=True,
        optional=True, reported_as="nonlinearity",
    )
)  # fmt: skip
