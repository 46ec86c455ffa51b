"""How much of a residual writer's gradient is common to all tokens, and how much of its input is alive.

A residual writer is the last projection of a branch: attention output, MLP down projection. For its input y and its
output gradient d, G = sum d y^T splits exactly into the part of the token means and the centred rest. The split is
that of one micro-batch on one rank, as its authors measure it; several of them add up as sums of squares.
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
        "Share of a residual writer's squared weight gradient that the token means carry.",
        "share", "mean_sumsq", "centred_sumsq", unit="ratio",
    ),
    _writer(
        "mean_mode_to_centred_ratio",
        "Norm of the token-mean part of a residual writer's weight gradient over that of the centred part.",
        "root_ratio", "mean_sumsq", "centred_sumsq", unit="ratio",
    ),
    _writer(
        "writer_amplification",
        "Squared weight gradient over the sum of squares of its tokens' parts: 1 if they are orthogonal.",
        "quotient", "whole_sumsq", "outer",
    ),
    _writer(
        "branch_trunk_ratio",
        "Root mean square of what a residual writer adds over that of its block's input.",
        "rms_ratio", "branch_sumsq", "count", "trunk_sumsq", "trunk_count", unit="ratio", reduction="branch",
    ),
    _writer(
        "dead_units_ratio",
        "Share of the inputs of a residual writer that are zero for every token of the batch.",
        "mean", "dead", "count", unit="ratio", reduction="units", source="",
    ),
)  # fmt: skip
