"""Losses without a lower bound, and targets that the outputs never reach or that never change."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Duration, Feature, RunFeature, own_signals
from stabwatch.alerts.objectives import OwnData
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, median, median_of_few

FEW = 8
"""Losses whose median is a level."""
BACK = 32
"""Records between two levels."""
FAR = 10.0
"""Targets over outputs, in root mean square, from which on they are far."""
FAR_OF_VALUES = 100.0
"""The same where the model makes its own data: the value of a policy rises as its rewards do."""
FLAT = 0.02
"""Deviation of the outputs over that of the targets: they explain less than a thousandth of the variance."""
SAME = 0.01
"""Of a label: what rounding leaves between equal ones is less, and one other label among thousands more."""
FEWEST = 8
"""Labels of a step."""


class BelowFeature(RunFeature):
    """How far the loss is below zero, over its first size (1 at least), and how that grows over 32 records."""

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_below_zero_ratio", "How far the loss is below zero, over its first size, at least 1.", "ratio", "run"
        ),
        DerivedSignal(
            "loss_below_growth_ratio", f"The same over what it was {BACK} records before; 0 unless negative then.",
            "ratio", "run",
        ),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__("loss_bound", "loss", "calls_without_gradient", "opponent_steps")

    def _begin(self) -> None:
        self._past: deque[float] = deque(maxlen=BACK + FEW)
        self._size = math.nan
        self._own = OwnData()

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss, acted, opposed = (self._one(signal, values) for signal in self._columns.signals)
        if not math.isfinite(loss):
            return None
        self._own.record(acted, opposed)
        self._past.append(loss)
        if len(self._past) == FEW and math.isnan(self._size):
            self._size = max(1.0, median(np.abs(np.array(self._past))))
        below = growth = math.nan
        if len(self._past) == BACK + FEW and not self._own.made:
            past = [*self._past]
            before, now = median_of_few(past[:FEW]), median_of_few(past[-FEW:])
            below, growth = max(-now, 0.0) / self._size, now / before if before < 0 else 0.0
        numbers = dict(zip((g.name for g in self.gauges), (below, growth), strict=True))
        return numbers | {"loss": loss, "loss_size": self._size}

    measures = own_signals


class FarFeature(RunFeature):
    """For how many steps the targets of `mse_loss` and its kin have been ten times as large as the outputs.

    A hundred times where the model makes its own data; beside it, whether it does.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "target_far_steps",
            f"Steps for which target_size_ratio has been above {FAR:g}; above {FAR_OF_VALUES:g} where the model makes "
            "its own data.",
            "1", "run",
        ),
        DerivedSignal("makes_its_data", "Whether the model makes the data that it learns from: 1, or 0.", "1", "run"),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__("target_size", "target_size_ratio", "target_rms", "calls_without_gradient")

    def _begin(self) -> None:
        self._far = Duration()
        self._own = OwnData()

    def _observe(self, values: Array) -> dict[str, float] | None:
        ratio, size, acted = (self._one(signal, values) for signal in self._columns.signals)
        self._own.record(acted)
        if not math.isfinite(ratio + size):
            return None
        makes = self._own.made
        far = self._far.at(self._step, ratio > (FAR_OF_VALUES if makes else FAR))
        return {self.signal: ratio, "target_rms": size, "target_far_steps": far, "makes_its_data": float(makes)}

    def measures(self, values: Array) -> Bools:
        """See `blocks`: each record counts."""
        return np.ones(len(values), dtype=bool)


class FlatFeature(RunFeature):
    """For how many steps the outputs of all samples have been the same, beside targets that differ.

    NaN where the model makes its own data, or plays against another one.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("output_flat_steps", f"Steps for which output_spread_ratio has been below {FLAT:g}.", "1", "run"),
    )

    def __init__(self) -> None:
        super().__init__("output_spread", "output_spread_ratio", "calls_without_gradient", "opponent_steps")

    def _begin(self) -> None:
        self._flat = Duration()
        self._own = OwnData()

    def _observe(self, values: Array) -> dict[str, float] | None:
        ratio, acted, opposed = (self._one(signal, values) for signal in self._columns.signals)
        self._own.record(acted, opposed)
        if not math.isfinite(ratio):
            return None
        flat = self._flat.at(self._step, ratio < FLAT)
        flat = math.nan if self._own.made else flat
        return {self.signal: ratio, self.gauges[0].name: flat}

    def measures(self, values: Array) -> Bools:
        """See `blocks`: each record counts."""
        return np.ones(len(values), dtype=bool)


class ConstantFeature(RunFeature):
    """For how many steps all labels have been one and the same class, beside what is left of the cross-entropy."""

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("target_constant_steps", "Steps for which all labels have been the same class.", "1", "run"),
        DerivedSignal("loss_left_ratio", "The cross-entropy of the step over ln(classes).", "ratio", "run"),
    )

    def __init__(self) -> None:
        super().__init__(
            "target_deviation", "target_deviation", "target_mean", "target_labels", "target_classes", "token_loss"
        )

    def _begin(self) -> None:
        self._label, self._since = math.nan, math.nan

    def _observe(self, values: Array) -> dict[str, float] | None:
        deviation, mean, labels, classes, loss = (self._one(signal, values) for signal in self._columns.signals)
        if not math.isfinite(deviation + mean + labels + loss) or not classes >= 2:
            return None
        label = mean * classes
        if labels < FEWEST or deviation * classes > SAME:
            self._label = self._since = math.nan
        elif not abs(label - self._label) <= SAME:
            self._label, self._since = label, self._step
        same = 0.0 if math.isnan(self._since) else self._step - self._since
        numbers = (same, loss / math.log(classes))
        return dict(zip((g.name for g in self.gauges), numbers, strict=True)) | {"token_loss": loss, "label": label}

    measures = own_signals


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (BelowFeature(), FarFeature(), FlatFeature(), ConstantFeature())


RULES: tuple[Rule, ...] = (
    Rule(
        name="LossWithoutBound",
        title="The loss falls without bound",
        family="loss_bound",
        summary="The loss falls below zero without bound: a term has the wrong sign, or the loss is not what it should "
        "be.",
        description="The loss is {loss:.4g}: {loss_below_zero_ratio:.3g} times its first size below zero, "
        "{loss_below_growth_ratio:.2g} times what it was 32 records before.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("loss_below_zero_ratio", above=50.0), Condition("loss_below_growth_ratio", above=1.5)),
                for_points=4,
            ),
        ),
        abnormal=(Condition("loss_below_zero_ratio", above=1.0),),
        source="fifty times its first size, and half as much again in 32 records: the log of a density falls by a few "
        "times its first size and slows down; a policy and a game are left out",
        remedy=(
            "Look for a term with the wrong sign: a divergence that is subtracted, a log-likelihood that is not "
            "negated.",
            "Is a loss that takes log-probabilities given logits? Is a variance bounded from below?",
        ),
        fact=True,
    ),
    Rule(
        name="TargetsNotScaled",
        title="The targets are not scaled",
        family="target_size",
        summary="The targets are far larger than all that the model gives, and it does not come near them.",
        description="The root mean square of the targets is {target_rms:.4g}, {target_size_ratio:.3g} times that of "
        "the outputs, for {target_far_steps:.0f} steps.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("target_far_steps", above=63.0),
                    Condition("target_rms", above=30.0),
                    Condition("makes_its_data", below=0.5),
                ),
                for_points=2,
            ),
            Threshold(
                severity="warning",
                when=(Condition("target_far_steps", above=127.0), Condition("target_rms", above=300.0)),
                for_points=2,
                summary="Rewards are not scaled: the values to be learned are hundreds of times larger than all that "
                "the model gives, and it does not come near them.",
            ),
        ),
        abnormal=(Condition("target_far_steps", above=0.0), Condition("target_rms", above=30.0)),
        source="ten times the outputs for 64 steps; initial outputs are about 1, and a usual step moves them by a "
        "thousandth to a tenth of that; a value of hundreds that is learned is within a hundredth after some tens of "
        "steps",
        remedy=(
            "Scale the targets to mean 0 and deviation 1, by numbers of the training set, and scale back what is "
            "forecast.",
            "Scale rewards, or normalise returns, so that values are about 1.",
            "Or begin with the mean of the targets as the bias of the last layer.",
        ),
        references=("LeCun et al. 1998, Efficient BackProp",),
        fact=True,
    ),
    Rule(
        name="OutputsConstant",
        title="The outputs are the same for all samples",
        family="output_spread",
        summary="The model gives the same for every sample, while the targets differ: it has learned their mean.",
        description="The outputs of different samples are {output_spread_ratio:.2g} times as far apart as their "
        "targets, for {output_flat_steps:.0f} steps.",
        thresholds=(Threshold(severity="warning", when=(Condition("output_flat_steps", above=149.0),), for_points=2),),
        abnormal=(Condition("output_flat_steps", above=0.0),),
        source="a fiftieth, so less than a thousandth of the variance, for 150 steps; a model that learns noise begins "
        "so and leaves it within a hundred",
        remedy=(
            "Does the input reach the output? Look for dead units, a saturated layer, and a code that is given up "
            "(a divergence that outweighs the reconstruction).",
            "Are inputs and targets scaled, and do they belong together?",
            "If the targets are mostly noise, no action is needed.",
        ),
    ),
    Rule(
        name="TargetsConstant",
        title="All targets are one class",
        family="target_deviation",
        summary="All targets are one and the same class: nothing is learned but to name it.",
        description="For {target_constant_steps:.0f} steps all labels have been class {label:.0f}; the cross-entropy "
        "is {token_loss:.3g}.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("target_constant_steps", above=63.0), Condition("loss_left_ratio", below=0.05)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("target_constant_steps", above=0.0), Condition("loss_left_ratio", below=0.5)),
        source="64 steps, and a twentieth of ln(classes) is left: a contrastive loss has its answer at one place too, "
        "and stays far above",
        remedy=(
            "Look at the labels of one batch: was a mask divided by 255 like a picture, and rounded to 0?",
            "Is the column of the labels the right one, and are its types whole numbers?",
        ),
        fact=True,
    ),
)
