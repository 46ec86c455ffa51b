"""Mixtures of experts: does the router still spread the tokens, and do its logits stay small?"""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

SIGNALS = (
    Signal(
        name="router_entropy",
        help="Mean entropy of the router's softmax over the experts.",
        unit="nat",
        tap="router",
        reduction="router",
        fields=("entropy", "count"),
        formula="mean",
        worst="min",
    ),
    Signal(
        name="router_z",
        help="Mean square of the logsumexp of the router's logits.",
        unit="1",
        tap="router",
        reduction="router",
        fields=("lse_sumsq", "count"),
        formula="mean",
        source="Zoph et al. 2022 (ST-MoE), arXiv:2202.08906; microsoft/ArchScale lit_gpt/moe.py",
    ),
    Signal(
        name="router_max_violation",
        help="Load of the busiest expert over the mean load, less one; the worst micro-batch.",
        unit="1",
        tap="router",
        reduction="router",
        fields=("violation",),
        formula="same",
        source="Wang et al. 2024 (auxiliary-loss-free load balancing), arXiv:2408.15664",
    ),
)
