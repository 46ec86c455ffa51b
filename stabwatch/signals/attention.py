"""Attention logits: lower and upper bounds at every step, the exact maximum now and then.

For a query row with logsumexp L over n visible keys, L - ln n <= max_j s_j <= L. Fused kernels save L for the
backward, so both bounds cost one reduction over batch x heads x queries.

Where a module computes its scores itself, entropy, sink, concentration and effective keys are those of the scores that
it gives to `softmax`; keys whose score is below -1e8 count as masked. Multi-head latent attention has queries and keys
like any other by then. Linear attention and state-space models have none of these: they add up keys and values before
a query reads the sum, so that no key has a weight. The sums of rows are measured where weights are scaled or shifted
after the softmax, or are another function of the scores.
"""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

_SINK = "Gu et al. 2024, When Attention Sink Emerges in Language Models, arXiv:2410.10781"

SIGNALS = (
    Signal(
        name="attention_logit_max",
        help="Exact largest attention logit (scaled, masked, before the softmax) over all heads of a layer.",
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
        help="Head with the largest attention logit of a layer, by the exact value.",
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
        help="Head with the largest upper bound of the attention logits of a layer.",
        unit="1",
        tap="attention",
        reduction="attention_bracket",
        fields=("head",),
        formula="same",
        tier="always",
    ),
    Signal(
        name="attention_logit_lower",
        help="Lower bound of the largest attention logit: logsumexp minus the logarithm of the number of visible keys.",
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
        name="attention_entropy",
        help="Mean entropy of a layer's attention weights over rows and heads.",
        unit="nat",
        tap="attention",
        reduction="attention_entropy",
        fields=("entropy", "count"),
        formula="mean",
        tier="deep",
        worst="min",
        source="Zhai et al. 2023 (attention entropy collapse), arXiv:2303.06296",
    ),
    Signal(
        name="attention_entropy_min",
        help="Mean entropy of the attention weights of the head with the smallest entropy.",
        unit="nat",
        tap="attention",
        reduction="attention_entropy",
        fields=("sharpest",),
        formula="negated",
        tier="deep",
        worst="min",
        source="Zhai et al. 2023 (attention entropy collapse), arXiv:2303.06296",
    ),
    Signal(
        name="attention_entropy_head",
        help="Head whose attention weights have the smallest entropy.",
        unit="1",
        tap="attention",
        reduction="attention_entropy",
        fields=("head",),
        formula="same",
        tier="deep",
    ),
    Signal(
        name="attention_contraction",
        help="Factor by which attention preserves differences between tokens, mean over heads; at 0 its outputs "
        "are equal.",
        unit="1",
        tap="attention",
        reduction="attention_contraction",
        fields=("sum", "count"),
        formula="mean",
        tier="deep",
        worst="min",
        source="Mean Mode Screaming, arXiv:2605.06169, erwold/mv-split gradient_diagnosis.py (mu_eff)",
    ),
    Signal(
        name="attention_sink_ratio",
        help="Mean attention weight of the first key that a query sees, over rows and heads.",
        unit="ratio",
        tap="attention",
        reduction="attention_sink",
        fields=("first", "count"),
        formula="mean",
        tier="deep",
        source=_SINK,
    ),
    Signal(
        name="attention_sink_heads_ratio",
        help="Share of heads whose queries give the first key a weight above 0.3 on average.",
        unit="ratio",
        tap="attention",
        reduction="attention_sink",
        fields=("sink_heads", "heads"),
        formula="quotient",
        tier="deep",
        source=_SINK,
    ),
    Signal(
        name="attention_concentration_ratio",
        help="Mean largest attention weight of a query, over rows and heads.",
        unit="ratio",
        tap="attention",
        reduction="attention_sink",
        fields=("largest", "count"),
        formula="mean",
        tier="deep",
    ),
    Signal(
        name="attention_effective_keys_ratio",
        help="Exponential of the entropy of a query's attention weights over the number of keys that it sees, mean.",
        unit="ratio",
        tap="attention",
        reduction="attention_sink",
        fields=("effective", "count"),
        formula="mean",
        tier="deep",
        worst="min",
    ),
    *(
        Signal(
            name=f"attention_row_weight{end}",
            help=f"{which} sum of a query's weights, of attention whose weights need not add up to 1.",
            unit="1",
            tap="attention",
            reduction="attention_row_sum",
            fields=fields,
            formula=formula,
            tier="deep",
            worst="min" if end == "_min" else "max",
            source="Affine-scaled attention, arXiv:2602.23057",
        )
        for end, which, fields, formula in (
            ("", "Mean", ("sum", "count"), "mean"),
            ("_max", "Largest", ("max",), "same"),
            ("_min", "Smallest", ("min",), "same"),
        )
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
