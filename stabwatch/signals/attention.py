"""Attention logits: a free two-sided bracket each time, the exact maximum on cadence.

For a query row with logsumexp L over n visible keys, L - ln n <= max_j s_j <= L. Fused kernels save L
for the backward, so both ends cost one reduction over batch x heads x queries.
"""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

SIGNALS = (
    Signal(
        name="attention_logit_max",
        help="Largest attention logit (scaled, masked, before the softmax) over all heads of a layer, exact.",
        unit="1",
        tap="attention",
        reduction="attention_exact",
        fields=("max",),
        formula="same",
        tier="deep",
        source="Dehghani et al. 2023, arXiv:2302.05442; Wortsman et al. 2023, arXiv:2309.14322",
    ),
    Signal(
        name="attention_logit_head",
        help="Head that holds the largest attention logit of a layer (by the exact value).",
        unit="1",
        tap="attention",
        reduction="attention_exact",
        fields=("head",),
        formula="same",
        tier="deep",
    ),
    Signal(
        name="attention_logit_upper",
        help="Upper bound of the largest attention logit: the largest logsumexp of a query row.",
        unit="1",
        tap="attention",
        reduction="attention_bracket",
        fields=("upper",),
        formula="same",
        tier="always",
    ),
    Signal(
        name="attention_logit_upper_head",
        help="Head that holds the upper bound of a layer's largest attention logit.",
        unit="1",
        tap="attention",
        reduction="attention_bracket",
        fields=("head",),
        formula="same",
        tier="always",
    ),
    Signal(
        name="attention_logit_lower",
        help="Lower bound of the largest attention logit: logsumexp less the log of the visible keys.",
        unit="1",
        tap="attention",
        reduction="attention_bracket",
        fields=("lower",),
        formula="same",
        tier="always",
    ),
    Signal(
        name="attention_z",
        help="Mean square of the attention logsumexp over batch, heads and queries.",
        unit="1",
        tap="attention",
        reduction="attention_bracket",
        fields=("lse_sumsq", "count", "nonfinite"),
        formula="mean",
        tier="always",
        source="microsoft/ArchScale lit_gpt/attention.py",
    ),
    Signal(
        name="attention_nonfinite_total",
        help="Query rows whose logsumexp was NaN or plus infinity, by layer.",
        unit="1",
        tap="attention",
        reduction="attention_bracket",
        fields=("nonfinite",),
        formula="total",
        kind="counter",
        tier="always",
    ),
)
