"""Singular values of weight matrices and of their updates, by warm-started block power iteration."""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal

_SOURCE = "Robust layerwise scaling by weight-decay tuning; Parcae (spectral norms of injection matrices)"


def _spectrum(name: str, help: str, tap: str, formula: str, *fields: str, **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=more.pop("unit", "1"), tap=tap, reduction="spectrum", fields=fields,
        formula=formula, tier="deep", source=_SOURCE, **more,
    )  # fmt: skip


SIGNALS = (
    _spectrum("singular_value_max", "Largest singular value of a weight matrix.", "matrix", "same", "first"),
    _spectrum(
        "singular_value_second_ratio",
        "Second largest singular value over the largest.",
        "matrix", "quotient", "second", "first", unit="ratio",
    ),
    _spectrum(
        "singular_value_residual_ratio",
        "Relative residual of the power iteration for the largest singular value.",
        "matrix", "same", "residual", unit="ratio",
    ),
    _spectrum(
        "stable_rank",
        "Squared Frobenius norm of a weight matrix over its squared largest singular value.",
        "matrix", "stable_rank", "sumsq", "count", "first", worst="min",
    ),
    _spectrum(
        "update_singular_value_max",
        "Largest singular value of one update of a weight matrix.",
        "matrix_update", "same", "first",
    ),
    _spectrum(
        "update_stable_rank",
        "Squared Frobenius norm of one update of a weight matrix over its squared largest singular value.",
        "matrix_update", "stable_rank", "sumsq", "count", "first", worst="min",
    ),
)  # fmt: skip
