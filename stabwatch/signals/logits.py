"""Output logits: drift of the logsumexp from zero (which a z-loss limits), softmax collapse, entropy."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

_SOURCE = "Chowdhery et al. 2022 (PaLM), arXiv:2204.02311; Wortsman et al. 2023, arXiv:2309.14322"

SIGNALS = (
    Signal(
        name="output_logit_logsumexp",
        help="Mean logsumexp of the output logits; it drifts away from zero when the logits diverge.",
        unit="nat",
        tap="logits",
        reduction="logsumexp",
        fields=("sum", "count", "nonfinite"),
        formula="mean",
        scope="run",
        tier="always",
        source=_SOURCE,
    ),
    Signal(
        name="output_logit_z",
        help="Mean square of the logsumexp of the output logits: the z-loss without its coefficient.",
        unit="1",
        tap="logits",
        reduction="logsumexp",
        fields=("sumsq", "count", "nonfinite"),
        formula="mean",
        scope="run",
        tier="always",
        source=_SOURCE,
    ),
    Signal(
        name="output_logit_nonfinite_total",
        help="Rows of output logits whose logsumexp was NaN or infinite.",
        unit="1",
        tap="logits",
        reduction="logsumexp",
        fields=("nonfinite",),
        formula="total",
        scope="run",
        kind="counter",
        tier="always",
    ),
    Signal(
        name="softmax_collapse_ratio",
        help="Share of samples whose loss is exactly zero in the softmax's precision, so that they give no gradient.",
        unit="ratio",
        tap="logits",
        reduction="certainty",
        fields=("collapsed", "count"),
        formula="mean",
        scope="run",
        tier="always",
        source="Prieto et al. 2025, Grokking at the edge of numerical stability, arXiv:2501.04697",
    ),
    Signal(
        name="logit_scaling_cosine",
        help="Mean cosine similarity of a row of logits and its descent direction; near 1 a step only scales the "
        "logits.",
        unit="1",
        tap="logits",
        reduction="scaling",
        fields=("cosine", "count"),
        formula="mean",
        scope="run",
        tier="deep",
        source="Prieto et al. 2025, Grokking at the edge of numerical stability, arXiv:2501.04697",
    ),
    Signal(
        name="output_logit_max",
        help="Largest output logit.",
        unit="1",
        tap="logits",
        reduction="classes",
        fields=("max",),
        formula="same",
        scope="run",
        tier="deep",
    ),
    Signal(
        name="output_entropy",
        help="Mean entropy of the softmax over the output logits.",
        unit="nat",
        tap="logits",
        reduction="classes",
        fields=("entropy", "count"),
        formula="mean",
        scope="run",
        tier="deep",
        worst="min",
    ),
)
