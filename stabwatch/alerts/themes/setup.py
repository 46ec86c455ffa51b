"""Faults of the set-up and of the loop: what is not trained, and how the loop treats the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stabwatch.alerts.blocks import Block
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Feature, LastingFeature, RunFeature, own_signals
from stabwatch.alerts.fresh_start import BACK, Course
from stabwatch.alerts.rule import Condition, Rule, Severity, Threshold
from stabwatch.alerts.statistics import Array, Ints, carried
from stabwatch.runlog import SeriesKey

HOLD = 4
"""Points for which the loop must treat the model so."""
PATIENCE = 15
"""Steps for which something must not be trained: by then the optimizers of a usual loop have stepped, also in turns."""
ZERO_RATE = 1e-5
"""Of the peak. A cosine schedule to zero is below it in the last 0.2 % of its steps."""


class PartFeature(LastingFeature):
    """Layers of which a share of the numbers is not trained, and what share of all trained numbers that is together.

    kind: how the names of the signals begin, `{kind}_ratio` (of the layer's numbers) and `{kind}_of_all_ratio`, and
    that of the gauge, `{kind}_together`. what: help text of the gauge.
    """

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}_ratio")
        self._of_all, self._together = f"{kind}_of_all_ratio", f"{kind}_together"
        self.gauges = (*self.gauges, DerivedSignal(self._together, what, "ratio"))
        self._shares = LayerColumns(self._of_all)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._shares.bind(keys)

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        numbers = super().update(step, values)
        if numbers is None:
            return None
        with np.errstate(invalid="ignore"):  # of infinities
            together = np.nansum(self._shares.of(self._of_all, values))
        return numbers | {self._together: np.where(np.isnan(numbers[self.signal]), np.nan, together)}

    measures = own_signals


class RateFeature(RunFeature):
    """Steps at which the learning rate was zero, or next to it (within 1e-5 of its peak so far), or below zero."""

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "learning_rate_zero_steps", "Steps since the learning rate came within 1e-5 of its peak to 0.", "1", "run"
        ),
        DerivedSignal(
            "learning_rate_zero_ratio",
            "Steps since the learning rate came within 1e-5 of its peak to 0, as a share of all so far.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "learning_rate_below_zero_ratio",
            "How far a learning rate that was positive is below zero, over its peak; 0 where it is not.",
            "ratio",
            "run",
        ),
        DerivedSignal("learning_rate_peak", "Largest learning rate so far.", "1", "run"),
    )

    def __init__(self) -> None:
        super().__init__("learning_rate", "learning_rate")

    def _begin(self) -> None:
        self._peak = 0.0
        self._first = self._since = math.nan

    def _observe(self, values: Array) -> dict[str, float] | None:
        rate = self._one(self.signal, values)
        if not math.isfinite(rate):
            return None
        self._peak = max(self._peak, rate)
        self._first = self._step if math.isnan(self._first) else self._first
        if abs(rate) > ZERO_RATE * self._peak:
            self._since = math.nan
        elif math.isnan(self._since):
            self._since = self._step
        low = 0.0 if math.isnan(self._since) else self._step - self._since
        share = low / (self._step - self._first) if self._step > self._first else 0.0
        names = (gauge.name for gauge in self.gauges)
        below = max(0.0, -rate) / self._peak if self._peak > 0 else 0.0
        return dict(zip(names, (low, share, below, self._peak), strict=True)) | {self.signal: rate}

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`."""
        rates = self._column(self.signal, values)
        rows = np.flatnonzero(np.isfinite(rates))
        rates, steps = rates[rows], steps[rows]
        if not len(rows):
            return self._many(rows, {})
        peaks = np.maximum.accumulate(np.append(self._peak, rates))[1:]
        low = ~(np.abs(rates) > ZERO_RATE * peaks)
        begins = low & ~np.append(not math.isnan(self._since), low[:-1])
        since = carried(np.where(begins, steps, np.nan)[:, None], np.array([self._since]))[:, 0]
        self._first = int(steps[0]) if math.isnan(self._first) else self._first
        self._peak, self._since = float(peaks[-1]), float(since[-1]) if low[-1] else math.nan
        lasted, all_steps = np.where(low, steps - since, 0.0), steps - self._first
        share = np.where(all_steps > 0, lasted / np.maximum(all_steps, 1), 0.0)
        below = np.divide(np.where(rates < 0, -rates, 0.0), peaks, out=np.zeros_like(rates), where=peaks > 0)
        numbers = dict(zip((gauge.name for gauge in self.gauges), (lasted, share, below, peaks), strict=True))
        return self._many(rows, {**numbers, self.signal: rates})


class ResetFeature(RunFeature):
    """Steps at which the optimizer had lost its state, beside how much of its progress the loss had lost by then."""

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_lost_at_reset_ratio",
            "Share of the loss's progress that is gone in a step in which the optimizer lost its state; else 0.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("optimizer_resets_total", "optimizer_resets_total", "loss")
        self._course = Course()

    def _observe(self, values: Array) -> dict[str, float] | None:
        resets, loss = (self._one(signal, values) for signal in self._columns.signals)
        lost = self._course.lost(loss) if resets > 0 else 0.0
        self._course.observe([loss])
        return None if math.isnan(resets) else {self.gauges[0].name: lost, self.signal: resets}

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`."""
        resets, losses = (self._column(signal, values) for signal in self._columns.signals)
        if (resets > 0).any():
            return None
        self._course.observe(losses.tolist())
        rows = np.flatnonzero(~np.isnan(resets))
        return self._many(rows, {self.gauges[0].name: np.zeros(len(rows)), self.signal: resets[rows]})


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        PartFeature(
            "gradient_missing", "Share of all trained numbers that have never had a gradient, over all layers."
        ),
        LastingFeature("refrozen_ratio", above=0.01),
        LastingFeature("unoptimized_ratio"),
        LastingFeature("unregistered_ratio"),
        LastingFeature("gradients_kept_ratio", above=0.5),
        LastingFeature("evaluation_mode_ratio"),
        ResetFeature(),
        RateFeature(),
    )


def lasting(severity: Severity, **above: float) -> Threshold:
    """A threshold of gauges that are all above a limit, for some points."""
    when = tuple(Condition(gauge, above=limit) for gauge, limit in above.items())
    return Threshold(severity=severity, when=when, for_points=2 if len(when) > 1 else HOLD)


def part_thresholds(kind: str, small: str, **above: float) -> tuple[Threshold, ...]:
    """Thresholds of a `PartFeature` by the share of all: half of it is critical, a hundredth is worth a warning.

    small: the summary of less. above: further gauges, and what they are above.
    """
    some = {f"{kind}_ratio": 0.0}
    return (
        lasting("critical", **some, **{f"{kind}_together": 0.5}, **above),
        lasting("warning", **some, **{f"{kind}_together": 0.01}, **above),
        replace(lasting("info", **some, **above), summary=small),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="ParametersNotRegistered",
        title="Layers that the model does not know",
        family="unregistered_ratio",
        summary="Layers in a plain list are used and never trained: the model does not know their parameters.",
        description="{unregistered_ratio:.0%} of the numbers in `{where}` have gradients, are in no optimizer, and are "
        "not among the model's parameters.",
        thresholds=(lasting("critical", unregistered_ratio=0.0, unregistered_ratio_steps=PATIENCE),),
        abnormal=(Condition("unregistered_ratio", above=0.0),),
        source="any; `model.parameters()` leaves out what is in plain lists, tuples and dicts",
        remedy=(
            "Use nn.ModuleList, nn.ModuleDict or nn.ParameterList in place of the list, and make the optimizer after "
            "it.",
            "If these layers should not be trained, set requires_grad to False.",
        ),
        fact=True,
    ),
    Rule(
        name="ParametersNotInOptimizer",
        title="Parameters in no optimizer",
        family="unoptimized_ratio",
        summary="Parameters get gradients and are in no optimizer: they are never trained.",
        description="{unoptimized_ratio:.0%} of the trainable numbers of {where} get gradients, and no optimizer has "
        "stepped them.",
        thresholds=(lasting("warning", unoptimized_ratio=0.0, unoptimized_ratio_steps=PATIENCE),),
        abnormal=(Condition("unoptimized_ratio", above=0.0),),
        source="any, for four points: a parameter that is frozen on purpose has requires_grad=False and no gradient",
        remedy=(
            "Make the optimizer after the last change of the model: a new head, a moved or reloaded layer.",
            "Give it these parameters (`optimizer.add_param_group`).",
            "If they should stay as they are, set requires_grad to False: that saves their gradients too.",
        ),
        fact=True,
    ),
    Rule(
        name="PartWithoutGradient",
        title="A part of the model gets no gradient",
        family="gradient_missing_ratio",
        summary="A part of the model that should be trained never gets a gradient.",
        description="{gradient_missing_ratio:.0%} of the trainable numbers of {where} have never had a gradient; "
        "together with other layers, {gradient_missing_together:.2g} of all.",
        thresholds=part_thresholds(
            "gradient_missing",
            "A small part of the model is not used by the loss.",
            gradient_missing_ratio_steps=PATIENCE,
        ),
        abnormal=(Condition("gradient_missing_ratio", above=0.0),),
        source="a hundredth of what is trained: an unused pooler of a pretrained encoder is smaller; half is critical",
        remedy=(
            "Look for `.detach()`, `torch.no_grad()`, `.data`, `.item()` or a numpy round trip between this part and "
            "the "
            "loss.",
            "With activation checkpointing of frozen inputs: use_reentrant=False, or make the inputs require "
            "gradients.",
            "If the part should not be trained, set requires_grad to False.",
        ),
        fact=True,
    ),
    Rule(
        name="FrozenInOptimizer",
        title="A part that was trained before is frozen",
        family="refrozen_ratio",
        summary="A part of the model that the optimizer trained before, as its state says, is frozen since the run was "
        "resumed.",
        description="{refrozen_ratio:.0%} of the numbers of an optimizer require no gradient, though it has a state of "
        "earlier steps of them.",
        thresholds=(lasting("warning", refrozen_ratio=0.01),),
        abnormal=(Condition("refrozen_ratio", above=0.01),),
        source="a hundredth of what is trained, or was; of a part that is frozen from the start an optimizer has no "
        "state",
        remedy=(
            "Was the part thawed before the checkpoint, and does the set-up freeze it again (a callback that freezes "
            "before training, a constructor)? Set requires_grad to True after the checkpoint is loaded.",
            "If the part should be trained no longer, leave it out of the optimizer, or take no action.",
        ),
        fact=True,
    ),
    Rule(
        name="GradientsAccumulate",
        title="Gradients are never set to zero",
        family="gradients_kept_ratio",
        summary="Gradients of earlier steps are still there when a step begins: each step uses the sum of all.",
        description="{gradients_kept_ratio:.0%} of the gradients that were looked at were not empty when the backward "
        "passes of the step began.",
        thresholds=(lasting("critical", gradients_kept_ratio=0.5),),
        abnormal=(Condition("gradients_kept_ratio", above=0.5),),
        source="more than half: where two optimizers take turns, one has just been set to zero",
        remedy=(
            "Call `optimizer.zero_grad()` once for each `optimizer.step()`.",
            "To accumulate gradients on purpose, step the optimizer only after the last micro-batch.",
        ),
        fact=True,
    ),
    Rule(
        name="EvalModeInTraining",
        title="Trained in evaluation mode",
        family="evaluation_mode_ratio",
        summary="The model, or a part of it, is trained in evaluation mode: dropout is off, and batch norm uses old "
        "statistics.",
        description="{evaluation_mode_ratio:.0%} of the layers with dropout or batch norm are in evaluation mode in a "
        "step of training.",
        thresholds=(lasting("warning", evaluation_mode_ratio=0.0),),
        abnormal=(Condition("evaluation_mode_ratio", above=0.0),),
        source="any, for four points; a part counts if it was trained in training mode before and is in evaluation "
        "mode as a whole, with its other layers",
        remedy=(
            "Call `model.train()` at the start of each epoch and after each validation, and after `part.eval()`.",
            "A model from `from_pretrained` starts in evaluation mode.",
            "To freeze batch norm alone, set only those layers to evaluation mode, and leave the model in training "
            "mode.",
        ),
        fact=True,
    ),
    Rule(
        name="OptimizerStateLost",
        title="The optimizer lost its state",
        family="optimizer_resets_total",
        summary="The optimizer began again without its state in the middle of the run.",
        description="At a step up to {step} the optimizer had no momentum and no second moments, although it had them "
        "before.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("optimizer_resets_total", above=0.0), Condition("loss_lost_at_reset_ratio", below=BACK),
                ),
            ),
            Threshold(
                severity="info",
                when=(Condition("optimizer_resets_total", above=0.0),),
                summary="Training starts over: the optimizer has no state, and the loss is back where it began.",
            ),
        ),
        abnormal=(Condition("optimizer_resets_total", above=0.0),),
        source="any: the first steps of Adam with an empty state are as large as its rate, however small the gradient "
        "is; where the weights are new as well, the loss shows it in that step (the next fold, weights rewound)",
        remedy=(
            "Save `optimizer.state_dict()` with the model, and load it when training resumes.",
            "If the optimizer is made again on purpose, warm the learning rate up again.",
        ),
        fact=True,
    ),
    Rule(
        name="LearningRateZero",
        title="The learning rate is zero",
        family="learning_rate",
        summary="The learning rate has become zero, or next to it: nothing is learned any more.",
        description="The learning rate is {learning_rate:.3g} after a peak of {learning_rate_peak:.3g}, for "
        "{learning_rate_zero_steps:.0f} steps: {learning_rate_zero_ratio:.0%} of the run.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("learning_rate_zero_steps", above=19.0), Condition("learning_rate_zero_ratio", above=0.1),
                ),
            ),
        ),
        abnormal=(Condition("learning_rate_zero_steps", above=-1.0), Condition("learning_rate_zero_ratio", above=0.0)),
        source="within 1e-5 of its peak for a tenth of the run; cosine and linear schedules to zero are there for less "
        "than a hundredth",
        remedy=(
            "Does the scheduler step once a batch where once an epoch is meant?",
            "Check its factors and its total number of steps; resume from before this step with the rate that is "
            "meant.",
            "If the run has reached the end of its schedule, stop it.",
        ),
        fact=True,
    ),
    Rule(
        name="LearningRateNegative",
        title="The learning rate is negative",
        family="learning_rate",
        summary="The learning rate has fallen below zero: each step makes the loss larger.",
        description="The learning rate is {learning_rate:.3g} after a peak of {learning_rate_peak:.3g}.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("learning_rate_below_zero_ratio", above=ZERO_RATE),)),
        ),
        abnormal=(Condition("learning_rate_below_zero_ratio", above=0.0),),
        source="any, for a rate that was positive: a step against its own direction; a rate that is negative from the "
        "first step on is taken to be meant",
        remedy=(
            "The schedule went past its end: give it the number of steps that are really taken, and end it at a rate "
            "above zero.",
            "Resume from before this step with the rate that is meant.",
        ),
        fact=True,
    ),
)  # fmt: skip
