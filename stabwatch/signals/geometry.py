"""Geometry of the residual stream: stability, token similarity, drift, outliers."""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal

_SHESHA = "shesha-geometry 0.3.0, feature_split"
_LEAP = "Leap+Verify, arXiv:2602.19580"
_MEAN_MODE = "Mean Mode Screaming, arXiv:2605.06169, erwold/mv-split"


def _signal(name: str, help: str, reduction: str, formula: str, *fields: str, **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=more.pop("unit", "1"), tap=more.pop("tap", "residual"), reduction=reduction,
        fields=fields, formula=formula, tier="deep", **more,
    )  # fmt: skip


SIGNALS = (
    _signal(
        "geometry_stability",
        "Rank correlation between the token distances in two random halves of the features.",
        "geometry", "mean", "sum", "count", worst="min", source=_SHESHA,
    ),
    _signal(
        "geometry_stability_error",
        "Monte-Carlo standard error of geometry_stability over its random halves.",
        "geometry", "standard_error", "sum", "sumsq", "count", source=_SHESHA,
    ),
    _signal(
        "token_similarity",
        "Mean cosine similarity of different tokens of one sample; near 1 the representation has collapsed.",
        "tokens", "mean", "cosine", "count", source=_MEAN_MODE,
    ),
    _signal(
        "token_mean_to_centred_ratio",
        "Norm of the token mean over the norm of the deviations from it.",
        "tokens", "root_ratio", "mean_sumsq", "centred_sumsq", unit="ratio", source=_MEAN_MODE,
    ),
    _signal(
        "geometry_drift",
        "Change of a fixed batch's token distances since `watch.probe` was called: 1 minus their rank correlation.",
        "drift", "mean", "drift", "count", tap="probe",
        source="shesha-geometry 0.3.0, rdm_drift",
    ),
    _signal(
        "shift_coherence",
        "Mean cosine similarity between each token's shift since `watch.probe` was called and the mean shift.",
        "drift", "mean", "coherence", "count", tap="probe",
        source="Shesha geometric stability, its study of CRISPR screens",
    ),
    _signal(
        "activation_lagged_cosine",
        "Cosine of a fixed batch's activations and those at their last measurement, less the mean of each feature.",
        "regime", "mean", "cosine", "count", tap="probe", source=_LEAP,
    ),
    _signal(
        "activation_lagged_cosine_rank",
        "Rank of activation_lagged_cosine among a layer's last 256 values; near 0 it changes fast for this run.",
        "regime", "mean", "rank", "count", tap="probe", source=_LEAP,
    ),
    _signal(
        "activation_kurtosis",
        "Fourth moment of a block's output over its squared second moment, about zero; 3 for a normal distribution.",
        "shape", "kurtosis", "fourth", "sumsq", "count",
    ),
    _signal(
        "activation_outlier_ratio",
        "Share of a block's output that is more than five standard deviations from its token's mean.",
        "shape", "mean", "outliers", "count", unit="ratio",
        source="microsoft/ArchScale lit_gpt/model.py compute_outlier_percentage",
    ),
)  # fmt: skip
