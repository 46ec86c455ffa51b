"""What of the model is trained at all, and how the loop treats it: a fault of the set-up shows here at once."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal


def _reach(name: str, help: str, field: str, of: str) -> Signal:
    return Signal(
        name=name,
        help=help,
        unit="ratio",
        tap="gradient",
        reduction="reach",
        fields=(field, of),
        formula="quotient",
        tier="always",
    )


SIGNALS = (
    _reach(
        "gradient_missing_ratio",
        "Share of a layer's trainable numbers that an optimizer holds and that have never had a gradient; measured in "
        "layers that have any.",
        "missing", "count",
    ),
    _reach(
        "gradient_missing_of_all_ratio",
        "Trainable numbers of a layer that have never had a gradient, as a share of all that are trained.",
        "missing", "total",
    ),
    _reach(
        "gradient_lost_ratio",
        "Share of a layer's trainable numbers that had gradients before, and none in the last looks at steps of their "
        "optimizer.",
        "lost", "count",
    ),
    _reach(
        "gradient_lost_of_all_ratio",
        "Trainable numbers of a layer that have lost their gradient, as a share of all that are trained.",
        "lost", "total",
    ),
    _reach(
        "unoptimized_ratio",
        "Share of a layer's trainable numbers that have gradients and that no optimizer has stepped; measured in "
        "layers that have any.",
        "unheld", "count",
    ),
    _reach(
        "unregistered_ratio",
        "Share of the numbers in a plain list of modules that have gradients and that neither the model nor an "
        "optimizer knows.",
        "unregistered", "count",
    ),
)  # fmt: skip
