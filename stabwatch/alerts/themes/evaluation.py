"""A validation loss that the training loop logs, beside the training loss."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Feature
from stabwatch.alerts.role_features import RoleFeature
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, median
from stabwatch.runlog import SeriesKey

EVALUATED, TRAINED, INITIAL = 3, 16, 4
"""Evaluations, training losses, and first training losses of the run, whose median counts."""
SCATTERED, LEAST_SCATTER = 34, 1e-3
"""Evaluations whose scatter counts, and the least that it is taken for."""


class EvaluationFeature(RoleFeature):
    """A validation loss over its best value, beside the training loss over what that was then.

    Both are medians: of three evaluations, and of sixteen training losses.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("eval_loss_to_best_ratio", "Logged validation loss over its best value.", "ratio", "run"),
        DerivedSignal(
            "loss_since_best_eval_ratio", "Training loss over what it was at the best validation loss.", "ratio", "run"
        ),
        DerivedSignal(
            "eval_loss_least_ratio",
            "Least ratio of a logged validation loss to the training loss then.",
            "ratio",
            "run",
        ),
        DerivedSignal("eval_loss_to_first_ratio", "Logged validation loss over the first one.", "ratio", "run"),
        DerivedSignal(
            "loss_since_first_eval_ratio", "Training loss over what it was at the first validation.", "ratio", "run"
        ),
        DerivedSignal(
            "eval_loss_rise_to_scatter_ratio",
            "Logarithm of the ratio of the logged validation loss to its best, over its usual scatter.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "eval_loss_to_initial_ratio",
            "Best logged validation loss over the training loss with which the run began.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "eval_loss_recent_ratio",
            f"Least ratio of the last {EVALUATED} logged validation losses to the training loss then.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("logged_eval_loss", "eval_loss")
        self._losses = LayerColumns("loss")

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._losses.bind(keys)

    def _begin(self) -> None:
        self._trained: deque[float] = deque(maxlen=TRAINED)
        self._evaluated: deque[float] = deque(maxlen=EVALUATED)
        self._best, self._then = math.inf, math.nan
        self._told: list[float] = []
        self._logarithms: deque[float] = deque(maxlen=SCATTERED)
        self._first_loss = self._first_told = self._least = math.nan
        self._initial: list[float] = []
        self._recent: deque[float] = deque(maxlen=EVALUATED)

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss = self._losses.number("loss", values)
        if math.isfinite(loss) and len(self._initial) < INITIAL:
            self._initial.append(loss)
        if not self._roles.bound:
            return None
        if math.isfinite(loss):
            self._trained.append(loss)
        evaluated = self._number(values)
        if math.isnan(evaluated):
            return None
        self._evaluated.append(evaluated)
        self._logarithms.append(math.log(evaluated) if evaluated > 0 else math.nan)
        now, trained = (median(np.array(x)) if x else math.nan for x in (self._evaluated, self._trained))
        if len(self._evaluated) == EVALUATED and now < self._best:
            self._best, self._then = now, trained
        known = 0 < self._best < math.inf and self._then > 0
        best = (now / self._best, trained / self._then) if known else (math.nan, math.nan)
        rise = math.log(best[0]) / _scatter(self._logarithms) if best[0] > 0 else math.nan
        numbers = (*best, *self._beside(evaluated, trained), rise, *self._never_learned(evaluated, trained))
        found = dict(zip((g.name for g in self.gauges), numbers, strict=True))
        return found | {"now": now, "best": self._best, "trained": trained}

    def _beside(self, evaluated: float, trained: float) -> tuple[float, float, float]:
        """A validation loss beside the training loss, both above zero; NaN for the first ones."""
        if not (evaluated > 0 and trained > 0):
            return math.nan, math.nan, math.nan
        if not self._told:
            self._first_loss, self._first_told = trained, evaluated
            self._least = evaluated / trained
        self._least = min(self._least, evaluated / trained)
        self._told = [*self._told[1 - EVALUATED :], evaluated]
        if len(self._told) < EVALUATED:
            return math.nan, math.nan, math.nan
        return self._least, median(np.array(self._told)) / self._first_told, trained / self._first_loss

    def _never_learned(self, evaluated: float, trained: float) -> tuple[float, float]:
        """The best validation loss over the first training losses, and the last ones beside those of their time."""
        self._recent.append(evaluated / trained if evaluated > 0 and trained > 0 else math.nan)
        began = median(np.array(self._initial)) if self._initial else math.nan
        best = self._best / began if began > 0 and math.isfinite(self._best) else math.nan
        return best, float(np.min(self._recent)) if len(self._recent) == EVALUATED else math.nan

    def measures(self, values: Array) -> Bools:
        """See `blocks`: each record counts once such a loss is logged, and the first losses do."""
        counts = np.full(len(values), self._roles.bound)
        first = np.flatnonzero(np.isfinite(self._losses.of_run("loss", values)))[: INITIAL - len(self._initial)]
        counts[first] = True
        return counts


def _scatter(logarithms: Sequence[float]) -> float:
    """Standard deviation of single values around a curve, robust: by the middle of three on the line of the others."""
    x = np.array(logarithms)
    apart = np.abs(x[1:-1] - (x[:-2] + x[2:]) / 2)
    apart = apart[np.isfinite(apart)]
    return max(median(apart) * 1.4826 / math.sqrt(1.5), LEAST_SCATTER) if len(apart) else math.nan


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (EvaluationFeature(),)


RULES: tuple[Rule, ...] = (
    Rule(
        name="Overfitting",
        title="The validation loss rises while the training loss falls",
        family="logged_eval_loss",
        summary="The validation loss that is logged rises while the training loss falls: samples are learned by heart.",
        description="The validation loss ('{signal}') was {best:.4g} at best and is {now:.4g}, while the training loss "
        "fell to {loss_since_best_eval_ratio:.0%} of what it was then, {trained:.4g}.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("eval_loss_to_best_ratio", above=1.25),
                    Condition("loss_since_best_eval_ratio", below=0.8),
                    Condition("eval_loss_rise_to_scatter_ratio", above=4.0),
                ),
                for_points=3,
            ),
        ),
        abnormal=(
            Condition("eval_loss_to_best_ratio", above=1.1),
            Condition("loss_since_best_eval_ratio", below=0.9),
        ),
        warm_up=6,
        source="a quarter above its best in the median of three evaluations, while the training loss has fallen by a "
        "fifth, and four standard deviations of single evaluations: the best of many that scatter is less far below",
        remedy=(
            "Keep the checkpoint of the best validation loss, and stop.",
            "More data, augmentation, weight decay, dropout, or a smaller model.",
            "Are all samples drawn? `next(iter(loader))` in each step gives the first batch again, and a sampler draws "
            "as many samples as it has weights.",
            "Is the validation set drawn and prepared as the training set is?",
        ),
    ),
    Rule(
        name="EvaluationApart",
        title="Evaluation far from training",
        family="logged_eval_loss",
        summary="The validation loss that is logged has never been near the training loss, and does not fall with it: "
        "evaluation may see other data or another model than training, or few samples are learned by heart.",
        description="The validation loss ('{signal}') was {eval_loss_least_ratio:.3g} times the training loss at "
        "least, and is {now:.4g} beside {trained:.4g}; the training loss is {loss_since_first_eval_ratio:.0%} of what "
        "it was at the first validation, the validation loss {eval_loss_to_first_ratio:.0%}. At best it was "
        "{eval_loss_to_initial_ratio:.0%} of the training loss with which the run began.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("eval_loss_least_ratio", above=3.0),
                    Condition("eval_loss_to_first_ratio", above=0.6),
                    Condition("loss_since_first_eval_ratio", below=0.5),
                ),
                for_points=2,
            ),
            Threshold(
                severity="warning",
                when=(
                    Condition("eval_loss_to_initial_ratio", above=0.6, below=2.0),
                    Condition("eval_loss_recent_ratio", above=10.0),
                    Condition("eval_loss_to_first_ratio", above=0.6),
                    Condition("loss_since_first_eval_ratio", below=0.5),
                ),
                for_points=2,
                summary="The validation loss that is logged has hardly come below the training loss with which the run "
                "began, and the training loss is a tenth of it: evaluation may see other data or another model than "
                "training, or few samples are learned by heart.",
            ),
        ),
        abnormal=(
            Condition("eval_loss_to_first_ratio", above=0.5),
            Condition("loss_since_first_eval_ratio", below=0.5),
        ),
        source="three times the training loss in each validation, and hardly below the first while that has halved: a "
        "model that overfits begins with both equal, and a sum in place of a mean falls with the training loss. Or "
        "three fifths of the first training losses at best, and ten times the training loss by now: a model that "
        "overfits has learned more than that before, if only a little",
        remedy=(
            "Evaluate on batches of the training data: the loss must be that of training, but for dropout.",
            "Compare the preparation of the data, and normalisation layers in evaluation mode (`model.eval()`).",
            "Batch norm: does its momentum let the running statistics follow (0.1; Keras counts the other way round)?",
        ),
    ),
)
