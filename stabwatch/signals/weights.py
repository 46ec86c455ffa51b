"""Weights and their updates."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

SIGNALS = (
    Signal(
        name="log_alignment_ratio",
        help="Logarithm, to the base of its inputs' width, of a linear layer's output RMS over those of weight and "
        "input.",
        unit="ratio",
        tap="linear",
        reduction="alignment",
        fields=("ratio", "count"),
        formula="mean",
        tier="deep",
        source="Log-alignment ratio, arXiv:2605.28975",
    ),
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
        help="Root mean square of one update of a layer's parameters.",
        unit="1",
        tap="update",
        reduction="update",
        fields=("update_sumsq", "count"),
        formula="rms",
    ),
    Signal(
        name="update_to_weight_ratio",
        help="Norm of one update of a layer's parameters over the norm of the parameters before it.",
        unit="ratio",
        tap="update",
        reduction="update",
        fields=("update_sumsq", "weight_sumsq"),
        formula="relative_norm",
    ),
    Signal(
        name="update_lost_ratio",
        help="Share of a layer's 16-bit weights with a gradient that a step left at the same number.",
        unit="ratio",
        tap="update",
        reduction="update_lost",
        fields=("same", "count"),
        formula="quotient",
    ),
)
