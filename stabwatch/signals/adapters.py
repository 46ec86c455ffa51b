"""Low-rank adapters: how large s B A is beside the weight W that it is added to, and what a step did to it.

The scaling s is shown as it is set (alpha / r, alpha / sqrt(r) of rsLoRA, or another); which of them keeps the gain
independent of the rank depends on the optimizer (docs/validation.md). Of DoRA it is the direction before its
normalisation.
"""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal


def _adapter(name: str, help: str, formula: str, *fields: str, **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=more.pop("unit", "1"), tap="adapter", reduction="adapter", fields=fields,
        formula=formula, tier="deep", source="Kalajdzievski 2023 (rsLoRA), arXiv:2312.03732",
    )  # fmt: skip


SIGNALS = (
    _adapter(
        "adapter_gain_ratio",
        "Frobenius norm of a low-rank adapter, scaled as it is applied, over that of the weight it is added to.",
        "root_ratio", "adapter_sumsq", "weight_sumsq", unit="ratio",
    ),
    _adapter(
        "adapter_change_ratio",
        "Frobenius norm of what one step did to a scaled adapter, over that of the weight it is added to.",
        "root_ratio", "change_sumsq", "weight_sumsq", unit="ratio",
    ),
    _adapter(
        "adapter_singular_value_ratio",
        "Largest singular value of a scaled adapter over that of the weight it is added to.",
        "quotient", "first", "weight_first", unit="ratio",
    ),
    _adapter("adapter_rank", "Rank of a low-rank adapter.", "same", "rank"),
    _adapter("adapter_scaling", "Factor by which a low-rank adapter is multiplied.", "same", "scaling"),
)  # fmt: skip
