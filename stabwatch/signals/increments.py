"""What one step does to the attention logits of given inputs, to first order: M = dWq' Wk + Wq' dWk of each head.

How many directions M has is told by the participation ratio of its squared singular values, the exponential of their
Renyi entropy of order two. The paper takes the exponential of Shannon's, which needs singular values: for these the
host would wait for an accelerator, so that entropy is measured on the CPU only.
"""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal


def _increment(name: str, help: str, formula: str, *fields: str, **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=more.pop("unit", "1"), tap="query_key", reduction="increment", fields=fields,
        formula=formula, tier="deep", source="Mechanism-driven monitors 2026, arXiv:2606.28116", **more,
    )  # fmt: skip


SIGNALS = (
    _increment(
        "query_key_increment_rank",
        "Number of directions (participation ratio) of a step's change of the query-key product, mean over heads.",
        "mean", "rank", "count", worst="min",
    ),
    _increment(
        "query_key_increment_rank_min",
        "Number of directions (participation ratio) of a step's change of the query-key product of the least head.",
        "same", "least", worst="min",
    ),
    _increment(
        "query_key_increment_entropy",
        "Shannon entropy of the squared singular values of a step's change of the query-key product, mean over heads.",
        "mean", "entropy", "entropies", unit="nat", worst="min",
    ),
    _increment(
        "query_key_increment_ratio",
        "Frobenius norm of a step's first-order change of the query-key products over that of the products.",
        "root_ratio", "change_sumsq", "product_sumsq", unit="ratio",
    ),
)  # fmt: skip
