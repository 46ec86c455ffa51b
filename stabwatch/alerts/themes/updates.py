"""Update sizes, Adam's state, and weight changes outside optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.blocks import Block, BlockGauges
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Feature, MedianFeature, PlainFeature
from stabwatch.alerts.references import ADAM, CALIBRATED, GHOSTS, PROXIES, SDC
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, Ints
from stabwatch.alerts.update_feature import UpdateFeature
from stabwatch.runlog import SeriesKey

FAR = 16
"""Steps between two points over which nothing is known of the sizes of the steps between them."""


class WeightFeature:
    """Change of a layer's weight norm that the optimizer's own steps cannot explain.

    The norm after a step is within (1 +- update-to-weight ratio) of the norm before it. Between two measured points,
    every step is assumed as large as the larger of the two, and three times that where they are large. The rest has
    another cause: a bit flip, a loaded checkpoint, swapped averaged weights. Points that are farther apart are not
    compared: the steps between are not known.
    """

    name = "weight"
    signal = "weight_rms"
    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "weight_unexplained_ratio",
            "Relative change of a layer's weight norm that its updates do not explain.",
            "ratio",
        ),
    )

    def __init__(self) -> None:
        self._columns = LayerColumns("weight_rms", "update_to_weight_ratio")
        self._written = LayerColumns("weights_rewritten_ratio")
        self._rms = self._ratio = self._steps = self._points = np.empty(0)
        self._writes = 0
        """How many times in a row the program was seen to have written."""
        self._waiting: Array | None = None

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        self._columns.bind(keys)
        self._written.bind(keys)
        more = len(self.layers) - len(self._rms)
        self._rms, self._ratio, self._steps = (
            np.append(kept, np.full(more, np.nan)) for kept in (self._rms, self._ratio, self._steps)
        )
        self._points = np.append(self._points, np.zeros(more))

    def restart(self) -> None:
        """See Feature."""
        for kept in (self._rms, self._ratio, self._steps):
            kept[:] = np.nan
        self._writes, self._waiting = 0, None

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        rms, ratio = (self._columns.of(signal, values) for signal in self._columns.signals)
        measured = ~np.isnan(rms)
        waited = self._wrote(self._written.number(self._written.signals[0], values), len(rms))
        if not measured.any() and waited is None:
            return None
        beyond = self._beyond(rms, ratio, step, self._rms, self._ratio, self._steps)
        if self._writes:
            beyond = self._explained(beyond, rms)
        if waited is not None:
            beyond = np.fmax(beyond, waited)
        self._points += measured
        self._rms, self._ratio = np.where(measured, rms, self._rms), np.where(measured, ratio, self._ratio)
        self._steps = np.where(measured, step, self._steps)
        return {self.gauges[0].name: beyond, "weight_rms": rms, "points": self._points.copy()}

    def _wrote(self, written: float, layers: int) -> Array | None:
        """Note whether the program wrote since the last step, NaN for not known. The changes that this tells, or None.

        Changes that waited are told where the program has not written again.
        """
        if written != written:
            return None
        self._writes = self._writes + 1 if written > REWRITTEN else 0
        waited, self._waiting = self._waiting, None
        return None if waited is None or self._writes else np.append(waited, np.full(layers - len(waited), np.nan))

    def _explained(self, beyond: Array, rms: Array) -> Array:
        """The changes without those that the program has made at each step. Those of its first time wait."""
        with np.errstate(invalid="ignore", divide="ignore"):
            doubled = rms > 2 * self._rms
        large = (beyond > UNEXPLAINED) & ~(doubled & (self._writes > SETTLED))
        if self._writes == 1 and large.any():
            self._waiting = np.where(large, beyond, np.nan)
        return np.where(large, 0.0, beyond)

    def measures(self, values: Array) -> Bools:
        """See `blocks`."""
        return self._columns.measured(values) | self._written.measured(values)

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`."""
        written = self._written.of_run(self._written.signals[0], values)
        known = written[~np.isnan(written)] > REWRITTEN
        if self._writes or self._waiting is not None or known.any():
            return None
        rms, ratio = (self._columns.of(signal, values) for signal in self._columns.signals)
        rows = np.flatnonzero(~np.isnan(rms).all(axis=1))
        rms, ratio = rms[rows], ratio[rows]
        if not len(rows):
            return rows, BlockGauges({"points": rms})
        measured = ~np.isnan(rms)
        at = np.maximum.accumulate(np.where(measured, np.arange(len(rows))[:, None], -1), axis=0)
        steps_now = np.broadcast_to(steps[rows, None].astype(np.float64), rms.shape)
        before = np.vstack([np.full((1, rms.shape[1]), -1), at[:-1]])
        old = [(rms, self._rms), (ratio, self._ratio), (steps_now, self._steps)]
        was, was_ratio, was_step = (_at_or(now, before, kept) for now, kept in old)
        beyond = self._beyond(rms, ratio, steps_now, was, was_ratio, was_step)
        points = self._points + np.cumsum(measured, axis=0)
        self._points = points[-1].copy()
        self._rms, self._ratio, self._steps = (_at_or(now, at[-1:], kept)[0] for now, kept in old)
        return rows, BlockGauges({self.gauges[0].name: beyond, "weight_rms": rms, "points": points})

    @staticmethod
    def _beyond(rms: Array, ratio: Array, step: Array | int, was: Array, was_ratio: Array, was_step: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            most = np.where(np.isnan(was_ratio), np.nan, np.fmax(was_ratio, ratio))
            steps = step - was_step
            most = np.where((steps > 1) & (most > LOUD), UNSEEN * most, most)
            grown = rms / was - np.exp(steps * np.log1p(most))
            shrunk = was / rms - np.exp(-steps * np.log1p(-np.minimum(most, 1.0)))
            beyond = np.maximum(np.fmax(grown, shrunk), 0.0)
        beyond[np.broadcast_to(steps > FAR, beyond.shape)] = np.nan
        beyond[~(np.isfinite(was) & (was > 0))] = np.nan
        beyond[~np.isfinite(rms) & (most >= 1)] = np.nan  # steps larger than the weights have grown without bound
        return beyond


LOUD, UNSEEN = 0.01, 3.0
"""Updates above the first differ from step to step: those between two points may be larger, by the second."""
REWRITTEN = 1e-5
"""Relative change of weights between two steps that no rounding makes: what was added is taken away again (SAM)."""
UNEXPLAINED = 0.05
SETTLED = 2
"""Times that the program has written, after which it no longer makes the weights twice as large."""


def _at_or(now: Array, rows: Ints, before: Array) -> Array:
    """The number of each column in some row, (n, columns); the one before all for row -1."""
    return np.where(rows < 0, before, np.take_along_axis(now, np.maximum(rows, 0), axis=0))


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        UpdateFeature(),
        WeightFeature(),
        PlainFeature("adam_step_rms"),
        MedianFeature(
            "adam_epsilon",
            "adam_epsilon_ratio",
            DerivedSignal("adam_epsilon_median_ratio", "Median over layers of adam_epsilon_ratio.", "ratio", "run"),
        ),
        PlainFeature("beyond_radius_ratio"),
        MedianFeature(
            "weight_median",
            "weight_rms",
            DerivedSignal("weight_rms_median", "Median over layers of weight_rms.", "1", "run"),
            DerivedSignal("weight_rms_to_peak_ratio", "weight_rms_median over its previous peak.", "ratio", "run"),
        ),
        MedianFeature(
            "update_lost",
            "update_lost_ratio",
            DerivedSignal("update_lost_median_ratio", "Median over layers of update_lost_ratio.", "ratio", "run"),
        ),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="UpdateTooLarge",
        title="Update too large",
        family="update",
        summary="Updates are far too large relative to the weights.",
        description="One update changes the weights of the median layer by {update_to_weight_median_ratio:.2g} of "
        "their norm, "
        "{update_to_weight_to_peak_ratio:.3g} times the previous peak; 0.001 is usual.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("update_to_weight_median_ratio", above=0.04),
                    Condition("update_to_weight_to_peak_ratio", above=4.0),
                ),
                summary="Updates have become several times larger than any before.",
            ),
            Threshold(severity="warning", when=(Condition("update_to_weight_median_ratio", above=0.07),), for_points=4),
        ),
        abnormal=(Condition("update_to_weight_median_ratio", above=0.02),),
        warm_up=8,
        source=f"seventy times the usual 1e-3; the healthy runs of {CALIBRATED} stay below 0.04 after eight points",
        remedy=(
            "Lower the learning rate until updates are about a thousandth of the weights.",
            "Warm it up over the first few hundred steps. Check the schedule for a jump.",
        ),
        references=(PROXIES,),
    ),
    Rule(
        name="UpdatesGrowAtFirst",
        title="Updates grow many times in the first steps",
        family="update",
        summary="Updates grow many times within the first steps, until they change much of the weights at once.",
        description="One update changes the weights of the median layer by {update_to_weight_median_ratio:.2g} of "
        "their norm, {update_to_weight_to_first_ratio:.3g} times the first one; 0.001 is usual.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("update_to_weight_to_first_ratio", above=5.0),
                    Condition("update_to_weight_median_ratio", above=0.15),
                    Condition("update_found_by_closure", below=0.5),
                ),
            ),
        ),
        abnormal=(
            Condition("update_to_weight_to_first_ratio", above=5.0),
            Condition("update_to_weight_median_ratio", above=0.15),
        ),
        source="of 126 short trainings (seven models, three optimizers, six rates) updates did so in 24: 23 failed, "
        "and one learned less; weights that begin small have their largest updates first; L-BFGS looks for its steps",
        remedy=(
            "Lower the learning rate: three to ten times. Is it that of more devices, or of another batch size?",
            "Warm it up over the first hundreds of steps, or clip the gradient norm.",
        ),
        references=(PROXIES,),
    ),
    Rule(
        name="NoUpdates",
        title="Steps change nothing",
        family="update",
        summary="The optimizer's steps no longer change the weights.",
        description="The step changed the weights of the median layer by {update_to_weight_median_ratio:.2g} of their "
        "norm.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("update_to_weight_median_ratio", below=1e-12),
                    Condition("update_found_by_closure", below=0.5),
                ),
                for_points=3,
            ),
        ),
        abnormal=(
            Condition("update_to_weight_median_ratio", below=1e-12),
            Condition("update_found_by_closure", below=0.5),
        ),
        source="below the rounding of float64: nothing was written, or what was written rounds to the same number",
        remedy=(
            "Check the learning rate, the gradient scaler (skipped steps) and what the gradients are at this step.",
            "Is the optimizer's `step` still called, on the parameters of this model?",
        ),
    ),
    Rule(
        name="WeightsDecayAway",
        title="Weight decay outweighs the gradient",
        family="weight_median",
        summary="The weights shrink towards zero: weight decay outweighs the gradient.",
        description="The weights of the median layer are {weight_rms_to_peak_ratio:.2g} of their largest size.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("weight_rms_to_peak_ratio", below=0.1),), for_points=2),
        ),
        abnormal=(Condition("weight_rms_to_peak_ratio", below=0.3),),
        source="a tenth of the peak, in the median layer; usual decay changes weights by a few per cent in a run",
        remedy=(
            "Lower the weight decay: SGD and AdamW shrink the weights by rate times decay at each step.",
            "Adam with `weight_decay` divides the decay by its second moment: use AdamW in its place.",
        ),
        fact=True,
    ),
    Rule(
        name="UpdatesLost",
        title="Updates are rounded away",
        family="update_lost",
        summary="Updates are too small for the number format of the weights, and most are rounded away.",
        description="In the median layer, {update_lost_median_ratio:.0%} of the weights with a gradient were the same "
        "number after the step.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("update_lost_median_ratio", above=0.75),), for_points=3),
            Threshold(severity="warning", when=(Condition("update_lost_median_ratio", above=0.95),), for_points=2),
        ),
        abnormal=(Condition("update_lost_median_ratio", above=0.75),),
        source="three quarters of the weights, or nearly all at two points; bfloat16 has 8 bits, so an update below "
        "1/512 of its weight is lost",
        remedy=(
            "Keep the weights in float32 and compute in bfloat16 (`torch.autocast`), or keep a float32 copy.",
            "Or use an optimizer that rounds stochastically or carries the rounding error (Kahan summation).",
        ),
        fact=True,
    ),
    Rule(
        name="WeightsChangedOutsideStep",
        title="Weights changed outside the optimizer",
        family="weight",
        summary="Weights changed by more than the optimizer's steps explain.",
        description="The weights of {where} changed by {weight_unexplained_ratio:.3g} of their norm more than "
        "the updates explain.",
        thresholds=(Threshold(severity="warning", when=(Condition("weight_unexplained_ratio", above=UNEXPLAINED),)),),
        abnormal=(Condition("weight_unexplained_ratio", above=UNEXPLAINED),),
        source="the norm after a step is within 1 +- the update-to-weight ratio; 0.05 is many times the rounding error",
        remedy=(
            "If a checkpoint was loaded, averaged weights swapped in or a layer reset here, no action is needed.",
            "Otherwise suspect the memory of this device: resume from before this step on another one, "
            "and run its diagnostics.",
        ),
        references=(SDC,),
    ),
    Rule(
        name="AdamStepTooLarge",
        title="Adam's steps exceed the learning rate",
        family="adam_step_rms",
        summary="Adam's second moment is too small for its gradients: its steps exceed the learning rate.",
        description="The root mean square of m / (sqrt(v) + eps) of {where} is {adam_step_rms:.3g}. Constant gradients "
        "give at most 1.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("adam_step_rms", above=2.0),)),
            Threshold(severity="info", when=(Condition("adam_step_rms", above=1.1),)),
        ),
        abnormal=(Condition("adam_step_rms", above=1.1),),
        warm_up=2,
        source="constant gradients give 1; one gradient far larger than all before gives up to "
        "(1 - beta1) / sqrt(1 - beta2) = 3.2",
        remedy=(
            "Find what changed here: the data, a loss weight, a layer that was unfrozen.",
            "Lower beta2 (0.95), clip updates (StableAdamW), or clip the gradient.",
            "Are the optimizer's states float16? Small squares round to zero there: keep them in float32.",
        ),
        references=(ADAM,),
    ),
    Rule(
        name="AdamEpsilonTooLarge",
        title="Adam epsilon too large",
        family="adam_epsilon",
        summary="Adam's epsilon exceeds the gradients, so it sets the step size.",
        description="In the median layer, {adam_epsilon_median_ratio:.0%} of the second moments are below epsilon "
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
        title="Step beyond the Taylor radius",
        family="beyond_radius_ratio",
        summary="Steps are longer than the Taylor radius, within which the gradient predicts the loss.",
        description="For {beyond_radius_ratio:.0%} of the samples the step is longer than the Taylor radius.",
        thresholds=(Threshold(severity="warning", when=(Condition("beyond_radius_ratio", above=0.5),), for_points=3),),
        abnormal=(Condition("beyond_radius_ratio", above=0.25),),
        source=f"no step within the radius failed, seven of ten beyond it did ({GHOSTS}; docs/validation.md)",
        remedy=(
            "Lower the learning rate, or lengthen the warm-up.",
            'The guard `guard="taylor"` shortens such steps.',
        ),
        references=(GHOSTS,),
    ),
)
