"""Activation functions: the share of their inputs at which they are flat."""

from __future__ import annotations

from stabwatch.hooks.base.probe import PROBES, Need, Probe, on
from stabwatch.hooks.base.views import NonlinearityCall
from stabwatch.kernels.merge import Aggregates
from stabwatch.kernels.saturation import saturation
from stabwatch.signals.reductions import SATURATION

IN_PLACE = "it works in place: its input is overwritten before it can be read"
OWN_CLASS = "its class is the model's own: only activation functions of torch and transformers are called once more"


def _saturation(x: NonlinearityCall) -> Aggregates | None:
    """The slope at some of the inputs, found by calling the module's `forward` on them again."""
    return None if x.rows is None else saturation(x.module.forward, x.rows)


PROBES.register(
    Probe(
        name="saturation", tap="nonlinearity", reduction=SATURATION, tier="deep",
        compute=on(NonlinearityCall, _saturation), round_robin=True, optional=True,
        needs=(Need("plain", OWN_CLASS), Need("out_of_place", IN_PLACE)), reported_as="nonlinearity",
    )
)  # fmt: skip
