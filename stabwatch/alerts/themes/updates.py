"""Update sizes, Adam's state, and weights that change outside of optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Feature, LayerColumns, MedianFeature, PlainFeature
from stabwatch.alerts.references import ADAM, CALIBRATED, GHOSTS, PROXIES, SDC
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array
from stabwatch.runlog import SeriesKey


class WeightFeature:
    """By how much a layer's weights changed beyond what the optimizer's own steps can have done.

    The norm after a step lies within (1 +- update-to-weight ratio) of the norm before it; between two measured points,
    every step is taken to be as large as the larger of the two. What is left over was changed by something else: a bit
    that turned over, a checkpoint that was loaded, an average that was swapped in.
    """

    name = "weight"
    signal = "weight_rms"
    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "weight_unexplained_ratio", "Change of a layer's weight norm beyond what its updates explain.", "ratio"
        ),
    )

    def __init__(self) -> None:
        self._columns = LayerColumns("weight_rms", "update_to_weight_ratio")
        self._rms = self._ratio = self._steps = self._points = np.empty(0)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)
        more = len(self.layers) - len(self._rms)
        self._rms, self._ratio, self._steps = (
            np.append(kept, np.full(more, np.nan)) for kept in (self._rms, self._ratio, self._steps)
        )
        self._points = np.append(self._points, np.zeros(more))

    def restart(self) -> None:
        """See Family."""
        for kept in (self._rms, self._ratio, self._steps):
            kept[:] = np.nan

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        rms, ratio = (self._columns.of(signal, values) for signal in self._columns.signals)
        measured = ~np.isnan(rms)
        if not measured.any():
            return None
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            most = np.where(np.isnan(self._ratio), np.nan, np.fmax(self._ratio, ratio))
            allowed = np.expm1((step - self._steps) * np.log1p(most))
            beyond = np.maximum(np.fmax(rms / self._rms, self._rms / rms) - 1 - allowed, 0.0)
        beyond[~(np.isfinite(self._rms) & (self._rms > 0))] = np.nan
        self._points += measured
        self._rms, self._ratio = np.where(measured, rms, self._rms), np.where(measured, ratio, self._ratio)
        self._steps = np.where(measured, step, self._steps)
        return {self.gauges[0].name: beyond, "weight_rms": rms, "points": self._points.copy()}


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        MedianFeature(
            "update",
            "update_to_weight_ratio",
            DerivedSignal(
                "update_to_weight_median_ratio", "Median over layers of update_to_weight_ratio.", "ratio", "run"
            ),
            DerivedSignal(
                "update_to_weight_to_peak_ratio",
                "update_to_weight_median_ratio over its largest value before.",
                "ratio",
                "run",
            ),
        ),
        WeightFeature(),
        PlainFeature("adam_step_rms"),
        MedianFeature(
            "adam_epsilon",
            "adam_epsilon_ratio",
            DerivedSignal("adam_epsilon_median_ratio", "Median over layers of adam_epsilon_ratio.", "ratio", "run"),
        ),
        PlainFeature("beyond_radius_ratio"),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="UpdateTooLarge",
        title="Steps too large for the weights",
        family="update",
        summary="Steps are far too large for the weights.",
        description="A step changes the weights by {update_to_weight_median_ratio:.2g} of their size in the median "
        "layer, {update_to_weight_to_peak_ratio:.3g} times the largest before; 0.001 is usual.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("update_to_weight_median_ratio", above=0.02),
                    Condition("update_to_weight_to_peak_ratio", above=4.0),
                ),
                summary="Steps have become many times larger than any before.",
            ),
            Threshold(severity="warning", when=(Condition("update_to_weight_median_ratio", above=0.07),), for_points=4),
        ),
        abnormal=(Condition("update_to_weight_median_ratio", above=0.02),),
        warm_up=8,
        source=f"seventy times the usual 1e-3; the healthy runs of {CALIBRATED} stay below 0.04 after eight points",
        remedy=(
            "Lower the learning rate until updates are about a thousandth of the weights.",
            "Warm it up over the first hundreds of steps; look for a jump in the schedule.",
        ),
        references=(PROXIES,),
    ),
    Rule(
        name="WeightsChangedOutsideStep",
        title="Weights changed from outside",
        family="weight",
        summary="Weights changed by more than the optimizer's steps explain.",
        description="The weights of {where} changed by {weight_unexplained_ratio:.3g} of their norm beyond what the "
        "updates explain.",
        thresholds=(Threshold(severity="warning", when=(Condition("weight_unexplained_ratio", above=0.05),)),),
        abnormal=(Condition("weight_unexplained_ratio", above=0.05),),
        source="a norm after a step lies within 1 +- the step's own ratio; 0.05 is rounding many times over",
        remedy=(
            "Was a checkpoint loaded, an average swapped in, a layer initialised again here? Then all is well.",
            "If not: memory of this device is suspect. Resume from before this step on another one."
            " Run its diagnostics.",
        ),
        references=(SDC,),
    ),
    Rule(
        name="AdamStepTooLarge",
        title="Adam's second moment is stale",
        family="adam_step_rms",
        summary="Adam's second moment is stale: its steps are longer than the learning rate.",
        description="The root mean square of m / (sqrt(v) + eps) of {where} is {adam_step_rms:.3g}; steady gradients "
        "give at most 1.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("adam_step_rms", above=2.0),)),
            Threshold(severity="info", when=(Condition("adam_step_rms", above=1.1),)),
        ),
        abnormal=(Condition("adam_step_rms", above=1.1),),
        warm_up=2,
        source="1 is what gradients that never change give; one gradient far larger than all before gives up to "
        "(1 - beta1) / sqrt(1 - beta2) = 3.2",
        remedy=(
            "What changed here: the data, the weight of a loss, a layer that began to learn?",
            "Lower beta2 (0.95), clip updates (StableAdamW), or clip the gradient.",
        ),
        references=(ADAM,),
    ),
    Rule(
        name="AdamEpsilonTooLarge",
        title="Adam's epsilon is too large",
        family="adam_epsilon",
        summary="Adam's epsilon is larger than the gradients: it sets the steps.",
        description="In the median layer, {adam_epsilon_median_ratio:.0%} of the second moments lie below epsilon "
        "squared.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("adam_epsilon_median_ratio", above=0.8),), for_points=8),
        ),
        abnormal=(Condition("adam_epsilon_median_ratio", above=0.5),),
        source=f"gradient RMS below epsilon ({PROXIES}); embeddings reach 0.75 in healthy runs, other layers 0.1",
        remedy=("Lower epsilon (1e-8, or 1e-15 for large models), or scale the loss up.",),
        references=(PROXIES,),
    ),
    Rule(
        name="StepBeyondRadius",
        title="Steps longer than the Taylor radius",
        family="beyond_radius_ratio",
        summary="Steps are longer than the radius within which the loss is what its series says.",
        description="For {beyond_radius_ratio:.0%} of the samples the step is longer than the Taylor radius.",
        thresholds=(Threshold(severity="warning", when=(Condition("beyond_radius_ratio", above=0.5),), for_points=3),),
        abnormal=(Condition("beyond_radius_ratio", above=0.25),),
        source=f"no step within the radius failed, seven of ten beyond it did ({GHOSTS}; docs/validation.md)",
        remedy=(
            "Lower the learning rate; lengthen the warm-up.",
            'The guard `guard="taylor"` shortens such steps.',
        ),
        references=(GHOSTS,),
    ),
)
