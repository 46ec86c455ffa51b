"""Log-alignment of linear layers: how far a weight and its inputs have come to fit each other."""

from __future__ import annotations

from stabwatch.hooks.base.linear_view import LinearCall
from stabwatch.hooks.base.probe import PROBES, Probe, on
from stabwatch.kernels.alignment import alignment
from stabwatch.kernels.merge import Aggregates
from stabwatch.signals import reductions


def _alignment(x: LinearCall) -> Aggregates | None:
    return alignment(x.inputs, x.out, x.weight) if x.weight.shape[1] > 1 else None


PROBES.register(
    Probe(
        name="alignment", tap="linear", reduction=reductions.ALIGNMENT, tier="deep",
        compute=on(LinearCall, _alignment), round_robin=True, per_call=True, optional=True,
    )
)  # fmt: skip
