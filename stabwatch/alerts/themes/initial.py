"""What a regression begins with: outputs that are many times as large as their targets."""

from __future__ import annotations

import math

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Feature, RunFeature
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools

LARGE = 10.0
"""Outputs over targets, in root mean square."""
USUAL = 3.0
"""Root mean square of outputs: usual initialisations give about 1."""


class InitialSizeFeature(RunFeature):
    """Outputs over targets of `mse_loss` and its kin: the smallest so far, and how large the outputs are now.

    NaN where the model makes its own data, or plays against another one.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "output_to_target_least_ratio", "Outputs over targets, in root mean square: the smallest so far.", "ratio",
            "run",
        ),
        DerivedSignal("compared_output_rms", "Root mean square of what targets are compared with.", scope="run"),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__("initial_size", "target_size_ratio", "target_rms", "calls_without_gradient", "opponent_steps")

    def _begin(self) -> None:
        self._least = math.inf

    def _observe(self, values: Array) -> dict[str, float] | None:
        ratio, size, acted, opposed = (self._one(signal, values) for signal in self._columns.signals)
        if not math.isfinite(ratio + size):
            return None
        self._least = min(self._least, 1 / ratio if ratio > 0 and size > 0 else 0.0)
        judged = not (acted > 0 or opposed > 0)
        numbers = (self._least if judged else math.nan, size / ratio if ratio > 0 else math.nan)
        return dict(zip((g.name for g in self.gauges), numbers, strict=True)) | {"target_rms": size}

    def measures(self, values: Array) -> Bools:
        """See `blocks`: records in which the sizes were measured."""
        return np.isfinite(self._column("target_size_ratio", values))


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (InitialSizeFeature(),)


_WHEN = (Condition("output_to_target_least_ratio", above=LARGE), Condition("compared_output_rms", above=USUAL))
RULES: tuple[Rule, ...] = (
    Rule(
        name="InitialOutputsTooLarge",
        title="The initial outputs are far too large",
        family="initial_size",
        summary="Training begins with outputs that are many times as large as the targets: the initialisation is too "
        "large, or layers add up.",
        description="The root mean square of the outputs is {compared_output_rms:.4g}, that of the targets "
        "{target_rms:.4g}; it has never been less than {output_to_target_least_ratio:.3g} times as large.",
        thresholds=(Threshold(severity="warning", when=_WHEN, for_points=2),),
        abnormal=_WHEN,
        source="ten times the targets and above 3, from the first point on: usual initialisations give about 1",
        remedy=(
            "Which layer makes them large? In residual blocks without a norm, scale what each block adds (by 0.1), or "
            "begin its last layer with zeros.",
            "Are the inputs scaled? Use the default initialisation, and begin the last layer with small weights.",
            "Or put a norm before the last layer.",
        ),
    ),
)
