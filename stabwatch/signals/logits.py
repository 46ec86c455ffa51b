"""Output logits: drift of the logsumexp from zero (which a z-loss limits), softmax collapse, entropy."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

_SOURCE = "Chowdhery et al. 2022 (PaLM), arXiv:2204.02311; Wortsman et al. 2023, arXiv:2309.14322"


def _target(name: str, help: str, *fields: str, unit: str = "ratio", formula: str = "quotient") -> Signal:
    return Signal(
        name=name, help=help, unit=unit, tap="logits", reduction="targets", fields=fields, formula=formula,
        scope="run", tier="always",
    )  # fmt: skip


def _form(name: str, help: str, field: str, of: str = "count", unit: str = "ratio") -> Signal:
    return Signal(
        name=name, help=help, unit=unit, tap="logits", reduction="logit_form", fields=(field, of), formula="quotient",
        scope="run",
    )  # fmt: skip


def _order(name: str, help: str, field: str, of: str = "count") -> Signal:
    return Signal(
        name=name, help=help, unit="ratio", tap="logits", reduction="token_order", fields=(field, of),
        formula="quotient", scope="run",
    )  # fmt: skip


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
    _target("target_ignored_ratio", "Share of the targets of `cross_entropy` that are ignored.", "ignored", "count"),
    _target("target_mean", "Mean label of `cross_entropy` over the number of classes.", "sum", "known", unit="1"),
    _target(
        "target_deviation",
        "Standard deviation of the labels of `cross_entropy`, over the number of classes.",
        "sum",
        "sumsq",
        "known",
        unit="1",
        formula="deviation",
    ),
    _target(
        "target_labels",
        "Labels of `cross_entropy` read in the step; a batch that ranks share (tensor parallelism) counts once.",
        "known",
        unit="1",
        formula="same",
    ),
    _target("target_classes", "Number of classes of `cross_entropy`.", "classes", unit="1", formula="same"),
    _form("output_probability_ratio", "Share of the rows of logits that are probabilities already.", "probability"),
    _form("output_cut_ratio", "Share of the rows of logits of which the smallest is exactly 0, and none below.", "cut"),
    _order("target_own_token_ratio", "Share of the targets that are the input's token at their own place.", "own"),
    _order("target_next_token_ratio", "Share of the targets that are the input's next token.", "following"),
    _order(
        "target_common_ratio",
        "Share of the targets of a language model that are the most frequent one of their micro-batch.",
        "common",
    ),
    _order("target_second_token_ratio", "Share of the targets that are the input's token after the next.", "second"),
    _order(
        "attention_open_ratio",
        "Share of the targets that were guessed with attention that sees the token after them: no mask hides it.",
        "open",
        "read",
    ),
    _order(
        "attention_causal_ratio",
        "Share of the targets that were guessed with attention that is causal, or has a mask that hides what follows.",
        "causal",
        "read",
    ),
    Signal(
        name="target_end_ratio",
        help="Share of the tokens that end a text in the input that are targets of the place before them.",
        unit="ratio",
        tap="logits",
        reduction="text_end",
        fields=("taught", "count"),
        formula="quotient",
        scope="run",
    ),
    _form("label_logit_gap", "Mean logit of a row minus that of its label.", "gap", of="known", unit="nat"),
)
