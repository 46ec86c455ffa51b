"""Mean mode of residual writers' gradients, and dead units in their inputs.

A residual writer is the last projection of a branch: attention output, MLP down projection. With its input y and its
output gradient d, G = sum d y^T splits exactly into the part of the token means and the centred part. The split is
per micro-batch and rank, as in the paper; several are combined as sums of squares.
"""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal

_SOURCE = "Mean Mode Screaming, arXiv:2605.06169, erwold/mv-split gradient_diagnosis.py"


def _writer(name: str, help: str, formula: str, *fields: str, **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=more.pop("unit", "1"), tap="writer", reduction=more.pop("reduction", "mean_mode"),
        fields=fields, formula=formula, tier="deep", source=more.pop("source", _SOURCE), **more,
    )  # fmt: skip


SIGNALS = (
    _writer(
        "mean_mode_energy_ratio",
        "Share of a residual writer's squared weight gradient that is in its token-mean part.",
        "share", "mean_sumsq", "centred_sumsq", unit="ratio",
    ),
    _writer(
        "mean_mode_to_centred_ratio",
        "Norm of the token-mean part of a residual writer's weight gradient over that of the centred part.",
        "root_ratio", "mean_sumsq", "centred_sumsq", unit="ratio",
    ),
    _writer(
        "writer_amplification",
        "Squared weight gradient over the sum of squares of its tokens' contributions; 1 if they are orthogonal.",
        "quotient", "whole_sumsq", "outer",
    ),
    _writer(
        "branch_trunk_ratio",
        "Root mean square of a residual writer's output over that of its block's input.",
        "rms_ratio", "branch_sumsq", "count", "trunk_sumsq", "trunk_count", unit="ratio", reduction="branch",
    ),
    _writer(
        "dead_units_ratio",
        "Share of the inputs of a residual writer that are zero for every token of the batch.",
        "mean", "dead", "count", unit="ratio", reduction="units", source="",
    ),
)  # fmt: skip
