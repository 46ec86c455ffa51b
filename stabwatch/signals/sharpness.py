"""Curvature of the loss beside the largest one with which the optimizer is stable. Measured with `sharpness=True`.

Of SGD with momentum b and learning rate r the limit is (2 + 2 b) / r, of Adam (2 + 2 b1) / ((1 - b1) r) for the Hessian
preconditioned as Adam does: 38 / r at b1 = 0.9. On a whole batch training goes up to the limit and stays there.
"""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal

_SOURCE = "Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484"


def _sharpness(name: str, help: str, *fields: str, formula: str = "same", source: str = _SOURCE, **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=more.pop("unit", "1"), tap="sharpness", reduction="sharpness", fields=fields,
        formula=formula, scope="run", tier="deep", source=source, **more,
    )  # fmt: skip


SIGNALS = (
    _sharpness(
        "sharpness_ratio",
        "Largest eigenvalue of the Hessian over the largest with which the optimizer is stable; 1: edge of stability.",
        "ratio", unit="ratio",
    ),
    _sharpness(
        "sharpness",
        "Largest eigenvalue of the Hessian of the mean loss, preconditioned as the optimizer does.",
        "value",
    ),
    _sharpness(
        "sharpness_residual_ratio",
        "Relative residual of the iteration for the largest eigenvalue of the Hessian.",
        "residual", unit="ratio",
    ),
    _sharpness(
        "hessian_trace",
        "Trace of the Hessian of the mean loss, not preconditioned: v'Hv of a random vector of signs; average several.",
        "trace", "count", formula="mean",
        source="Hutchinson 1989 (stochastic estimator of the trace); Avron and Toledo 2011",
    ),
)  # fmt: skip
