"""Length of the optimizer's step relative to the Taylor radius of the loss. Measured with `taylor=True`.

Per sample, r = step length / radius. The radius is pi over the spread of the logits' directional derivatives along the
step (exact for two classes, a lower bound for more). In experiments no step with r < 1 failed.
"""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal
from stabwatch.signals.reductions import RADII

_DISTRIBUTION = tuple(field.name for field in RADII.fields)


def _step(name: str, help: str, formula: str, *fields: str, **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=more.pop("unit", "ratio"), tap="step", reduction=more.pop("reduction", "taylor"),
        fields=fields, formula=formula, scope="run", tier="deep", source="Ghosts of Softmax, arXiv:2603.13552", **more,
    )  # fmt: skip


SIGNALS = (
    _step(
        "step_to_radius_ratio",
        "Length of the step over the Taylor radius, for the sample with the smallest radius.",
        "same", "max",
    ),
    _step(
        "step_to_radius_mean_ratio",
        "Length of the step over the Taylor radius, mean over samples.",
        "mean", "sum", "count",
    ),
    _step(
        "beyond_radius_ratio",
        "Share of samples whose Taylor radius is shorter than the step.",
        "mean", "beyond", "count",
    ),
    _step(
        "taylor_radius",
        "Smallest Taylor radius of the samples, along the step, in units of the parameters.",
        "quotient", "step", "max", unit="1", worst="min",
    ),
    _step(
        "step_to_radius_median_ratio",
        "Length of the step over the Taylor radius, median over samples.",
        "median", *_DISTRIBUTION, reduction="radii",
    ),
    _step(
        "step_to_radius_p99_ratio",
        "Length of the step over the Taylor radius that one sample in a hundred exceeds.",
        "percentile99", *_DISTRIBUTION, reduction="radii",
    ),
)  # fmt: skip
