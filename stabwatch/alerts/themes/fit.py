"""What a regression explains of its targets, and weights that are replaced in the middle of a run."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Duration, Feature, RunFeature
from stabwatch.alerts.fresh_start import Course
from stabwatch.alerts.objectives import EQUAL, MovingTargets, OwnData
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, median

WINDOW = 4
"""Looks at the losses whose median counts: 64 steps of a long run, so that one that begins to learn is seen."""
LEVELS = 16
"""Looks whose means of the targets show how much of their variance lies between batches."""
NOTHING = 0.97
"""Squared error over the variance of the targets: what is above it explains next to nothing of them."""
STAYS = 0.95
"""It still explains nothing down to here: four batches scatter."""
AFTER = 3
"""Losses whose median tells what a change of the weights did."""
HABIT, OFTEN = 16, 2
"""Of so many records, those with writes from which on the program writes again and again."""


class FitFeature(RunFeature):
    """The squared error over the variance of the targets, and for how many steps it was that of their mean.

    Only where the trained loss is the one that compares outputs with targets; NaN where the model makes its own data,
    plays against another one, or where the targets grow: a value is mostly chance. The variance is that of all batches:
    targets of one batch may be similar.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "unexplained_ratio",
            "Median squared error over the variance of the targets of several batches.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "unexplained_steps",
            f"Steps for which unexplained_ratio has been {NOTHING:g} or more, and {STAYS:g} from then on.",
            "1",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__(
            "error_to_variance",
            "error_to_variance_ratio",
            "compared_loss",
            "loss",
            "calls_without_gradient",
            "opponent_steps",
            "target_rms",
            "compared_mean",
            "compared_deviation",
        )

    def _begin(self) -> None:
        self._past: deque[float] = deque(maxlen=WINDOW)
        self._levels: deque[tuple[float, float]] = deque(maxlen=LEVELS)
        self._same: deque[bool] = deque(maxlen=WINDOW)
        self._lasts, self._targets = Duration(), MovingTargets()
        self._own = OwnData()
        self._begun = False

    def _observe(self, values: Array) -> dict[str, float] | None:
        ratio, compared, loss, acted, opposed, size, *level = (self._one(s, values) for s in self._columns.signals)
        self._own.record(acted, opposed)
        if not math.isfinite(ratio + compared + loss):
            return None
        self._past.append(ratio * self._within(*level))
        self._same.append(abs(loss - compared) <= EQUAL * abs(compared))
        self._targets.observe(loss, compared, size)
        moves = self._targets.grown or self._own.made
        judged = sum(self._same) > len(self._same) / 2 and not moves
        now = median(np.array(self._past))
        self._begun = judged and now >= (STAYS if self._begun else NOTHING)
        steps = self._lasts.at(self._step, self._begun)
        return dict(zip((g.name for g in self.gauges), (now, steps), strict=True)) | {"loss": loss}

    def _within(self, mean: float, deviation: float) -> float:
        """The share of the variance of the targets that lies within batches; 1 where it is not known."""
        if math.isfinite(mean + deviation):
            self._levels.append((mean, deviation))
        means, deviations = np.array(self._levels).reshape(-1, 2).T
        within = float(np.square(deviations).mean()) if len(deviations) else 0.0
        return within / (within + float(means.var())) if within > 0 else 1.0

    def measures(self, values: Array) -> Bools:
        """See `blocks`: each record counts."""
        return np.ones(len(values), dtype=bool)


class ReplacedFeature(RunFeature):
    """How much of its progress the loss has lost in a step before which the program wrote into the weights.

    0 where it writes again and again (a mask, an average, a clipped weight), where the optimizer lost its state as well
    (training starts over), and where the loss is within what it was.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_lost_at_write_ratio",
            f"Share of the progress that is gone in the {AFTER} losses after the program wrote into the weights.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "weights_written_steps", f"Steps since that write, where its {AFTER} losses are there; else 0.", "1", "run"
        ),
    )

    def __init__(self) -> None:
        super().__init__("weights_written", "weights_written", "loss", "optimizer_resets_total")

    def _begin(self) -> None:
        self._course = Course()
        self._writes: deque[bool] = deque(maxlen=HABIT)
        self._highest: deque[float] = deque(maxlen=HABIT)
        self._waiting: list[float] | None = None
        self._wrote = 0

    def _observe(self, values: Array) -> dict[str, float] | None:
        written, loss, resets = (self._one(signal, values) for signal in self._columns.signals)
        if not math.isfinite(loss + written):
            return None
        habit = sum(self._writes) >= OFTEN
        self._writes.append(written > 0)
        if resets > 0 or habit:
            self._waiting = None
        elif written > 0:
            self._waiting, self._wrote = [], self._step
        lost, since = 0.0, 0
        if self._waiting is None:
            self._course.observe([loss])
            self._highest.append(loss)
        else:
            self._waiting.append(loss)
            if len(self._waiting) == AFTER:
                now = median(np.array(self._waiting))
                above = now > max(self._highest, default=math.inf)
                lost = self._course.lost(now) if above else 0.0
                self._course.observe(self._waiting)
                self._waiting, since = None, self._step - self._wrote
        return dict(zip((g.name for g in self.gauges), (lost, since), strict=True)) | {"loss": loss}

    def measures(self, values: Array) -> Bools:
        """See `blocks`: records of steps of which this is known."""
        return np.isfinite(self._columns.of_run("weights_written", values))


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (FitFeature(), ReplacedFeature())


RULES: tuple[Rule, ...] = (
    Rule(
        name="NoBetterThanMean",
        title="The model is no better than the mean of its targets",
        family="error_to_variance",
        summary="The error has not come below the variance of the targets: their mean alone would do as well.",
        description="The squared error is {unexplained_ratio:.1%} of the variance of the targets, as for "
        "{unexplained_steps:.0f} steps; their mean alone gives 100%.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("unexplained_ratio", above=NOTHING), Condition("unexplained_steps", above=199.0)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("unexplained_ratio", above=NOTHING), Condition("unexplained_steps", above=0.0)),
        source="a thirtieth of the variance is explained, or less, after 200 steps, where the trained loss is that "
        "error: a forecast of returns that are nine tenths noise explains more",
        remedy=(
            "Do the targets belong to the inputs? Shuffle both in the same order; is a noise or a mask drawn twice?",
            "Does the input reach the output? Look for dead or saturated units, a layer with one number, a code that "
            "is given up (a divergence that outweighs the reconstruction).",
            "Try to overfit one batch: a correct set-up does so in some hundred steps.",
            "If the targets are mostly noise, no action is needed.",
        ),
    ),
    Rule(
        name="WeightsReplaced",
        title="Other weights were written into the model",
        family="weights_written",
        summary="The program wrote other weights into the model in the middle of the run, and what was learned is "
        "lost.",
        description="The program wrote into the weights between two steps, {weights_written_steps:.0f} steps before "
        "this one, and {loss_lost_at_write_ratio:.0%} of the progress of the loss is gone since.",
        thresholds=(Threshold(severity="warning", when=(Condition("loss_lost_at_write_ratio", above=0.25),)),),
        abnormal=(Condition("loss_lost_at_write_ratio", above=0.1),),
        source="a quarter of the progress, in the median of three losses that are above each of the 16 before; a "
        "program that writes again and again is left out",
        began="weights_written_steps",
        remedy=(
            "Find what writes into the weights there: averaged weights that are left in after an evaluation, a "
            "checkpoint that is loaded, an initialisation in the loop over epochs.",
            "Put the trained weights back, and resume from before this step.",
            "If layers are reset on purpose, no action is needed.",
        ),
        fact=True,
    ),
)
