"""Where the steps go, and the health of Adam's moments."""

from __future__ import annotations

from stabwatch.signals.declaration import Signal

SIGNALS = (
    Signal(
        name="update_weight_cosine",
        help="Cosine between a step's change of a layer's parameters and these: growth above zero, decay below.",
        unit="1",
        tap="update",
        reduction="direction",
        fields=("dot", "update_sumsq", "weight_sumsq"),
        formula="cosine",
        tier="deep",
        source="AdamP, arXiv:2006.08217 (radial share of the update)",
    ),
    Signal(
        name="adam_step_rms",
        help="Root mean square of Adam's m / (sqrt(v) + eps) of one layer: about 1 if gradients agree, small if not.",
        unit="1",
        tap="optimizer",
        reduction="adam",
        fields=("step_sumsq", "count"),
        formula="rms",
        tier="deep",
    ),
    Signal(
        name="adam_epsilon_ratio",
        help="Share of a layer's second moments below epsilon squared: there epsilon sets the step, not the gradient.",
        unit="ratio",
        tap="optimizer",
        reduction="adam",
        fields=("stale", "count"),
        formula="mean",
        tier="deep",
        source="Wortsman et al. 2023, arXiv:2309.14322",
    ),
)
