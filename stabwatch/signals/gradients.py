"""Gradients, as the optimizer is about to use them (after unscaling, clipping and averaging over ranks)."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

SIGNALS = (
    Signal(
        name="gradient_norm_before_clip",
        help="Norm of all gradients as `clip_grad_norm_` found it, before it clipped.",
        unit="1",
        tap="gradient",
        reduction="clip",
        fields=("sumsq",),
        formula="norm",
        level="run",
        tier="always",
    ),
    Signal(
        name="gradient_norm",
        help="Euclidean norm of all gradients at the optimizer step.",
        unit="1",
        tap="gradient",
        reduction="moments",
        fields=("sumsq",),
        formula="norm",
        level="run",
    ),
    Signal(
        name="layer_gradient_norm",
        help="Euclidean norm of the gradients of one layer's parameters at the optimizer step.",
        unit="1",
        tap="gradient",
        reduction="moments",
        fields=("sumsq",),
        formula="norm",
    ),
    Signal(
        name="gradient_rms",
        help="Root mean square of the gradients of one layer; trouble is near when it falls to Adam's epsilon.",
        unit="1",
        tap="gradient",
        reduction="moments",
        fields=("sumsq", "count"),
        formula="rms",
        worst="min",
        source="Wortsman et al. 2023, arXiv:2309.14322",
    ),
    Signal(
        name="gradient_abs_max",
        help="Largest absolute gradient of one layer.",
        unit="1",
        tap="gradient",
        reduction="moments",
        fields=("abs_max",),
        formula="same",
    ),
    Signal(
        name="gradient_nonfinite_total",
        help="Gradient elements that were NaN or infinite, by layer.",
        unit="1",
        tap="gradient",
        reduction="moments",
        fields=("nonfinite",),
        formula="total",
        kind="counter",
    ),
)
