"""Quantisation-aware training: how the integers of a weight flip while it is trained.

Quantisers of torch.ao, torchao and those that look like LSQ's are found; `watch.quantised` describes others.

Of each weight 65,536 numbers at most are looked at, evenly spread, at each deep step. The flips are those between two
such steps, so their share depends on how far these are apart. A weight oscillates where an exponential moving average
(momentum 0.01) of flips that go back, against the flip before, is above 0.02.
"""

from __future__ import annotations

from stabwatch.signals.declaration import Signal


def _quantised(name: str, help: str, reduction: str, field: str, source: str) -> Signal:
    return Signal(
        name=name, help=help, unit="ratio", tap="quantiser", reduction=reduction, fields=(field, "count"),
        formula="quotient", tier="deep", source=source,
    )  # fmt: skip


_NAGEL = "Nagel et al. 2022, arXiv:2203.11086"

SIGNALS = (
    _quantised(
        "quantised_flip_ratio",
        "Share of a weight's numbers whose integer has changed since the last measurement.",
        "flips", "flipped", _NAGEL,
    ),
    _quantised(
        "quantised_oscillation_ratio",
        "Share of a weight's numbers whose integer goes back and forth: the moving average of flips against the last "
        "flip is above 0.02.",
        "flips", "oscillating", _NAGEL,
    ),
    _quantised(
        "quantised_boundary_ratio",
        "Share of a weight's numbers within 0.005 of a level of the boundary between two integers, over the share of "
        "evenly spread numbers.",
        "levels", "near", "OFQ, Liu et al. 2023, arXiv:2302.02210",
    ),
)  # fmt: skip
