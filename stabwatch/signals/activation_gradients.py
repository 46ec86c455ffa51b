"""Gradients of the outputs of blocks and of residual writers, and their growth on the way back through a stack.

They are those of the loss whose backward pass runs, without the scale of a gradient scaler.
"""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal


def _gradient(name: str, help: str, formula: str, *fields: str, **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit="1", tap="activation_gradient", reduction=more.pop("reduction", "moments"),
        fields=fields, formula=formula, **more,
    )  # fmt: skip


SIGNALS = (
    _gradient(
        "activation_gradient_rms",
        "Root mean square of the gradient of a block's or a residual writer's output.",
        "rms", "sumsq", "count", "nonfinite",
    ),
    _gradient(
        "activation_gradient_abs_max",
        "Largest absolute gradient of a block's or a residual writer's output.",
        "same", "abs_max",
    ),
    _gradient(
        "backward_growth",
        "Least-squares slope of ln(activation gradient RMS) per block, from the last block of a stack to its first.",
        "quotient", "rise", "spread", reduction="depth",
        source="Hanin 2018, arXiv:1801.03744; ScaleLong, arXiv:2310.13545",
    ),
    _gradient(
        "activation_gradient_nonfinite_total",
        "Elements of the gradient of a block's or a residual writer's output that were NaN or infinite.",
        "total", "nonfinite", kind="counter",
    ),
)  # fmt: skip
