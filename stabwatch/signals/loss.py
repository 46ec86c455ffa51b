"""The loss, as the training step saw it."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

SIGNALS = (
    Signal(
        name="loss",
        help="Training loss of the step: the objective whose gradient the optimizer used, averaged over ranks.",
        unit="nat",
        tap="loss",
        reduction="mean",
        fields=("sum", "count"),
        formula="mean",
        scope="run",
        tier="always",
    ),
    Signal(
        name="token_loss",
        help="Cross-entropy of the step over all its valid targets; the trained loss may have other terms and weights.",
        unit="nat",
        tap="token_loss",
        reduction="mean",
        fields=("sum", "count"),
        formula="mean",
        scope="run",
        tier="always",
    ),
    Signal(
        name="loss_nonfinite_total",
        help="Loss values that were NaN or infinite.",
        unit="1",
        tap="loss",
        reduction="mean",
        fields=("nonfinite",),
        formula="total",
        scope="run",
        kind="counter",
        tier="always",
    ),
    Signal(
        name="token_loss_nonfinite_total",
        help="Values of the cross-entropy that were NaN or infinite.",
        unit="1",
        tap="token_loss",
        reduction="mean",
        fields=("nonfinite",),
        formula="total",
        scope="run",
        kind="counter",
        tier="always",
    ),
)
