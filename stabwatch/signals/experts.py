"""Mixture of experts: load balance and router logits."""

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
        help="Load of the busiest expert over the mean load, minus one; of the worst micro-batch.",
        unit="1",
        tap="router",
        reduction="router",
        fields=("violation",),
        formula="same",
        source="Wang et al. 2024 (auxiliary-loss-free load balancing), arXiv:2408.15664",
    ),
    Signal(
        name="router_overflow_ratio",
        help="Share of assignments above 1.25 times the mean expert load, which a capacity factor of 1.25 would drop.",
        unit="ratio",
        tap="router",
        reduction="capacity",
        fields=("overflow", "count"),
        formula="mean",
        source="Fedus et al. 2021 (Switch Transformers), arXiv:2101.03961, its capacity factor",
    ),
    Signal(
        name="router_dropped_ratio",
        help="Share of assignments above the layer's own capacity, which the layer drops.",
        unit="ratio",
        tap="router",
        reduction="dropped",
        fields=("dropped", "count"),
        formula="mean",
        source="Fedus et al. 2021 (Switch Transformers), arXiv:2101.03961",
    ),
    Signal(
        name="expert_load_ratio",
        help="Share of a router's assignments that go to one expert.",
        unit="ratio",
        tap="expert",
        reduction="load",
        fields=("load", "count"),
        formula="mean",
    ),
    Signal(
        name="expert_output_rms",
        help="Root mean square of one expert's output before router weighting, for experts in one stacked module.",
        unit="1",
        tap="expert",
        reduction="expert",
        fields=("sumsq", "count"),
        formula="rms",
        tier="deep",
    ),
)
