"""Weights and what the optimizer step did to them."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

SIGNALS = (
    Signal(
        name="weight_rms",
        help="Root mean square of one layer's parameters before the step.",
        unit="1",
        tap="weight",
        reduction="moments",
        fields=("sumsq", "count", "nonfinite"),
        formula="rms",
    ),
    Signal(
        name="weight_nonfinite_total",
        help="Parameter elements that were NaN or infinite, by layer.",
        unit="1",
        tap="weight",
        reduction="moments",
        fields=("nonfinite",),
        formula="total",
        kind="counter",
    ),
    Signal(
        name="update_rms",
        help="Root mean square of what a step changes in one layer's parameters.",
        unit="1",
        tap="update",
        reduction="update",
        fields=("update_sumsq", "count"),
        formula="rms",
    ),
    Signal(
        name="update_to_weight_ratio",
        help="Norm of the step's parameter change over the norm of the parameters before it, by layer.",
        unit="ratio",
        tap="update",
        reduction="update",
        fields=("update_sumsq", "weight_sumsq"),
        formula="root_ratio",
    ),
)
