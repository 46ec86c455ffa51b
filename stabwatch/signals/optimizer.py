"""Directions of updates, and Adam's moments."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

_ADAMP = "AdamP, arXiv:2006.08217, its test of scale invariance"

SIGNALS = (
    Signal(
        name="update_weight_cosine",
        help="Cosine similarity of a layer's update and its parameters: above zero they grow, below they shrink.",
        unit="1",
        tap="update",
        reduction="direction",
        fields=("dot", "update_sumsq", "weight_sumsq"),
        formula="cosine",
        tier="deep",
        source="AdamP, arXiv:2006.08217 (radial share of the update)",
    ),
    Signal(
        name="update_successive_cosine",
        help="Cosine similarity of a layer's update and its previous update, on at most 65,536 elements.",
        unit="1",
        tap="update",
        reduction="successive",
        fields=("dot", "update_sumsq", "last_sumsq"),
        formula="cosine",
        tier="deep",
        worst="min",
    ),
    Signal(
        name="scale_invariant_ratio",
        help="Share of a layer's matrices that are orthogonal to their gradient, as a following norm makes them.",
        unit="ratio",
        tap="update",
        reduction="invariance",
        fields=("invariant", "count"),
        formula="mean",
        tier="deep",
        worst="min",
        source=_ADAMP,
    ),
    Signal(
        name="radial_update_ratio",
        help="Share of the squared update of a layer's scale-invariant weights that only changes their norm.",
        unit="ratio",
        tap="update",
        reduction="radial",
        fields=("radial_sumsq", "update_sumsq"),
        formula="quotient",
        tier="deep",
        source=_ADAMP,
    ),
    Signal(
        name="effective_step_size",
        help="Root mean square angle in radians by which an update rotates a layer's scale-invariant weight vectors.",
        unit="1",
        tap="update",
        reduction="radial",
        fields=("turned_sumsq", "count"),
        formula="rms",
        tier="deep",
        source=_ADAMP,
    ),
    Signal(
        name="adam_step_rms",
        help="Root mean square of Adam's m / (sqrt(v) + eps) of one layer; about 1 for constant gradients, small "
        "for noise.",
        unit="1",
        tap="optimizer",
        reduction="adam",
        fields=("step_sumsq", "count"),
        formula="rms",
        tier="deep",
    ),
    Signal(
        name="adam_epsilon_ratio",
        help="Share of a layer's second moments below epsilon squared, where epsilon and not the gradient sets the "
        "step.",
        unit="ratio",
        tap="optimizer",
        reduction="adam",
        fields=("stale", "count"),
        formula="mean",
        tier="deep",
        source="Wortsman et al. 2023, arXiv:2309.14322",
    ),
)
