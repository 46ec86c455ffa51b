"""Outputs of blocks and of their residual branches."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

SIGNALS = (
    Signal(
        name="output_rms",
        help="Root mean square of a module's output.",
        unit="1",
        tap="activation",
        reduction="moments",
        fields=("sumsq", "count", "nonfinite"),
        formula="rms",
        source="microsoft/ArchScale lit_gpt/model.py",
    ),
    Signal(
        name="activation_abs_max",
        help="Largest absolute value in a module's output.",
        unit="1",
        tap="activation",
        reduction="moments",
        fields=("abs_max",),
        formula="same",
        source="Measuring Maximum Activations, clx1415926/Max_act_llm",
    ),
    Signal(
        name="activation_peak_ratio",
        help="Largest absolute value in a module's output over its root mean square.",
        unit="ratio",
        tap="activation",
        reduction="moments",
        fields=("abs_max", "sumsq", "count", "nonfinite"),
        formula="peak",
        source="Measuring Maximum Activations, clx1415926/Max_act_llm",
    ),
    Signal(
        name="activation_nonfinite_total",
        help="Elements of a module's output that were NaN or infinite.",
        unit="1",
        tap="activation",
        reduction="moments",
        fields=("nonfinite",),
        formula="total",
        kind="counter",
    ),
)
