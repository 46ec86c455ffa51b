"""What the loss is given: logits that are none, targets that do not fit, batches that are not shuffled."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.features import (
    DerivedSignal,
    Feature,
    LastingFeature,
    PlainFeature,
    RunFeature,
    own_signals,
)  # fmt: skip
from stabwatch.alerts.guess_feature import GuessFeature
from stabwatch.alerts.number_order import ORDERED, NumberOrder
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, median

WINDOW = 16
"""Steps over which labels are compared."""
WORSE = 1.5
"""Of ln(classes): no guess, but a loss that has risen far above one."""
ALL = 0.999
"""Of what a binary loss is given."""
MARGIN = 0.4
"""Share of a cross-entropy above that of a guess that the labels' logits explain: more, and it has a margin."""
STRETCH = 48
"""Steps of one kind of data from which on it is another task, and no order."""
FEWEST = 8
"""Fewest labels of a step: of eight drawn at random, an eighth of the variance lies between steps."""


class ShuffleFeature(RunFeature):
    """How much of the variance of the labels lies between steps: 1 / n of steps of n labels that are shuffled.

    Another task is no order: two changes that are 48 steps apart do not count, unless each batch has one label.
    Of the numbers of a regression see `NumberOrder`.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "target_between_ratio",
            f"Share of the variance of the targets that lies between steps, over the last {WINDOW} steps; of numbers 0 "
            f"up to {ORDERED:g}.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__(
            "target_mean", "target_mean", "target_deviation", "target_labels", "compared_mean", "compared_deviation",
            "calls_without_gradient", "opponent_steps", "loss", "compared_loss", "target_rms",
        )  # fmt: skip

    def _begin(self) -> None:
        self._past: deque[tuple[float, float, float, float]] = deque(maxlen=WINDOW)
        self._numbers = NumberOrder()
        self._labelled = False

    def _observe(self, values: Array) -> dict[str, float] | None:
        mean, deviation, labels, *numbers = (self._one(signal, values) for signal in self._columns.signals)
        if math.isfinite(mean + deviation + labels):
            self._labelled = True
            return {self.gauges[0].name: self._of_labels(mean, deviation, labels), self.signal: mean}
        self._numbers.record(*numbers[2:])
        if self._labelled or not math.isfinite(numbers[0] + numbers[1]):
            return None
        return {self.gauges[0].name: self._numbers.share(numbers[0], numbers[1]), self.signal: numbers[0]}

    def _of_labels(self, mean: float, deviation: float, known: float) -> float:
        self._past.append((self._step, mean, deviation, known))
        steps, means, deviations, labels = np.array(self._past).T
        within = float(np.square(deviations).mean())
        between = _between(steps, means) if median(deviations) > 0 else float(means.var())
        enough = len(self._past) == WINDOW and median(labels) >= FEWEST and between + within > 0
        return between / (between + within) if enough else math.nan

    measures = own_signals


def _between(steps: Array, means: Array) -> float:
    """The variance of the means of steps within up to three stretches of `STRETCH` steps and more."""
    n = len(means)
    if steps[-1] - steps[0] < 2 * STRETCH:
        return float(means.var())
    sums, squares = (np.concatenate([[0.0], np.cumsum(x)]) for x in (means, means * means))

    def within(start: int, stop: int) -> float:
        total = sums[stop] - sums[start]
        return float(squares[stop] - squares[start] - total * total / (stop - start)) if stop > start else 0.0

    cuts = ((i, j) for i in range(n) for j in range(i, n) if i == j or steps[j] - steps[i] >= STRETCH)
    return max(0.0, min(within(0, i) + within(i, j) + within(j, n) for i, j in cuts)) / n


class UniformFeature(RunFeature):
    """The cross-entropy above that of a uniform guess, ln(classes), as far as the size of the logits explains it.

    A margin that is subtracted from the label's logit raises it too; that part, the gap, is left out. Where it is much
    of the whole, the logits are those of a loss with a margin, which scales cosines: then nothing is said. lowest: the
    smallest cross-entropy so far, above that of a uniform guess.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_above_uniform", "Cross-entropy minus ln(classes), less what a margin on the label adds.", "nat", "run"
        ),
        DerivedSignal("loss_lowest_above_uniform", "The lowest of it so far.", "nat", "run"),
    )

    def __init__(self) -> None:
        super().__init__("token_loss", "token_loss", "target_classes", "label_logit_gap")

    def _begin(self) -> None:
        self._lowest = math.nan

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss, classes, gap = (self._one(signal, values) for signal in self._columns.signals)
        if not math.isfinite(loss + classes + gap) or classes < 2:
            return None
        above = loss - math.log(classes) - max(gap, 0.0)
        if above > 0 and gap > MARGIN * (above + gap):
            return None
        self._lowest = min(above, self._lowest) if math.isfinite(self._lowest) else above
        return {self.gauges[0].name: above, self.gauges[1].name: self._lowest, self.signal: loss}

    measures = own_signals


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        GuessFeature(),
        PlainFeature("output_probability_ratio"),
        PlainFeature("output_cut_ratio"),
        PlainFeature("loss_broadcast_factor"),
        PlainFeature("target_out_of_range_ratio"),
        LastingFeature("binary_probability_ratio", above=ALL),
        PlainFeature("log_probability_off_ratio"),
        PlainFeature("target_ignored_ratio"),
        ShuffleFeature(),
        UniformFeature(),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="DoubleSoftmax",
        title="Probabilities are given to a loss that takes logits",
        family="output_probability_ratio",
        summary="The loss takes logits and is given probabilities: a softmax is applied twice.",
        description="{output_probability_ratio:.0%} of the rows that `cross_entropy` was given are probabilities: "
        "none is "
        "negative, and they add up to 1.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("output_probability_ratio", above=0.9),), for_points=2),
        ),
        abnormal=(Condition("output_probability_ratio", above=0.9),),
        source="rows of logits do not add up to 1; of probabilities the loss cannot fall below ln(e + C - 1) - 1",
        remedy=(
            "Leave out the softmax at the end of the model: `cross_entropy` has one of its own.",
            "Or take the logarithm of the probabilities and use `nll_loss`.",
        ),
        fact=True,
    ),
    Rule(
        name="ReluOnLogits",
        title="Logits are cut off at zero",
        family="output_cut_ratio",
        summary="Logits are cut off at zero before the loss: a class whose logit is cut off gets no gradient.",
        description="In {output_cut_ratio:.0%} of the rows that `cross_entropy` was given the smallest logit is "
        "exactly 0.",
        thresholds=(Threshold(severity="warning", when=(Condition("output_cut_ratio", above=0.5),), for_points=3),),
        abnormal=(Condition("output_cut_ratio", above=0.5),),
        source="more than half of the rows, at three points: the smallest output of a linear layer is exactly 0 only "
        "where all are, at a start from zero",
        remedy=("Leave out the activation after the last layer.",),
        fact=True,
    ),
    Rule(
        name="LossBroadcast",
        title="Tensors of different shapes in the loss",
        family="loss_broadcast_factor",
        summary="Tensors of different shapes meet in the loss: each output is compared, or multiplied, with every "
        "target or weight.",
        description="Each number of one met {loss_broadcast_factor:.0f} of the other.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("loss_broadcast_factor", above=1.5),), for_points=2),
        ),
        abnormal=(Condition("loss_broadcast_factor", above=1.5),),
        source="any; (n, 1) against (n,) gives (n, n), and the model learns the mean of all targets; (n, 1) against "
        "(n, k) that of the k targets of a sample; (n,) times (n, 1) weighs all samples the same",
        remedy=(
            "Give both the same shape: `output.squeeze(-1)`, or `target.unsqueeze(-1)`.",
            "Give weights, masks and events of samples the shape of what they are multiplied with: (n,), not (n, 1).",
            "If the target has more columns than the output, was a sum over them forgotten (log-probabilities of "
            "several actions)?",
        ),
        fact=True,
    ),
    Rule(
        name="TargetOutOfRange",
        title="Targets out of range",
        family="target_out_of_range_ratio",
        summary="Targets are none that the loss takes: outside of 0 to 1 for a binary cross entropy, neither -1 nor 1 "
        "for a loss with a margin, or the blank of `ctc_loss`.",
        description="{target_out_of_range_ratio:.0%} of the targets are none that the loss takes.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("target_out_of_range_ratio", above=0.0),), for_points=2),
        ),
        abnormal=(Condition("target_out_of_range_ratio", above=0.0),),
        source="any: the definition of the loss",
        remedy=(
            "Binary cross entropy: scale the targets to 0 to 1 (pixels by 255), or use a loss for numbers of any size.",
            "A loss with a margin (`soft_margin_loss`, `margin_ranking_loss` and their kin): `2 * target - 1`.",
            "`ctc_loss`: number the symbols from 1 on, or give the blank a number of its own (`blank=`).",
        ),
        fact=True,
    ),
    Rule(
        name="DoubleSigmoid",
        title="A sigmoid is applied before a loss that takes logits",
        family="binary_probability_ratio",
        summary="The loss takes logits, and all that it is given is between 0 and 1: a sigmoid comes before it.",
        description="{binary_probability_ratio:.0%} of what `binary_cross_entropy_with_logits` or `cross_entropy` was "
        "given as logits is between 0 and 1.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("binary_probability_ratio", above=ALL),
                    Condition("binary_probability_ratio_steps", above=63.0),
                ),
                for_points=2,
            ),
        ),
        abnormal=(Condition("binary_probability_ratio", above=ALL),),
        source="all, for 64 steps: logits between 0 and 1 say half to three quarters of every sample; a discriminator "
        "begins with some; ten such classes cannot get more than 23 %; what a linear layer gives has no bounds and is "
        "left out",
        remedy=(
            "Leave out the sigmoid at the end of the model: `binary_cross_entropy_with_logits` has one of its own, and "
            "`cross_entropy` has a softmax.",
            "Or keep it and use `binary_cross_entropy`.",
        ),
        fact=True,
    ),
    Rule(
        name="NotLogProbabilities",
        title="The loss is given no log-probabilities",
        family="log_probability_off_ratio",
        summary="The loss takes log-probabilities, and what it is given does not add up to 1 over the classes.",
        description="In {log_probability_off_ratio:.0%} of the rows that `nll_loss`, `ctc_loss` or `kl_div` was given "
        "the probabilities do not add up to 1.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("log_probability_off_ratio", above=0.5),), for_points=2),
        ),
        abnormal=(Condition("log_probability_off_ratio", above=0.5),),
        source="most rows, by more than a tenth: rounding in bfloat16 is far below; a definition of the loss; of "
        "`kl_div` only sums above 1 count, as it may compare some of the classes",
        remedy=(
            "Apply `log_softmax` over the dimension of the classes; `cross_entropy` takes logits.",
            "Is the softmax taken over the batch (`dim=0`)? Is it a softmax without the logarithm?",
        ),
        fact=True,
    ),
    Rule(
        name="TargetsIgnored",
        title="Nearly all targets are ignored",
        family="target_ignored_ratio",
        summary="Nearly all targets are ignored: almost nothing is learned from a batch.",
        description="{target_ignored_ratio:.2%} of the targets are ignored.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("target_ignored_ratio", above=0.999),), for_points=3),
        ),
        abnormal=(Condition("target_ignored_ratio", above=0.999),),
        source="all but one in a thousand, at three points; a fine-tuning batch keeps its answers, a masked language "
        "model 15 %",
        remedy=(
            "Look at the labels of one batch: is the answer cut off, or masked with the prompt?",
            "Check `ignore_index` (-100 by default) against the padding of the labels.",
        ),
        fact=True,
    ),
    Rule(
        name="DataNotShuffled",
        title="The data are not shuffled",
        family="target_mean",
        summary="Batches hold one class after the other, or numbers in their order: the data are not shuffled.",
        description="{target_between_ratio:.0%} of the variance of the targets lies between batches; of shuffled data "
        "it is one over the batch size.",
        thresholds=(Threshold(severity="warning", when=(Condition("target_between_ratio", above=0.5),), for_points=2),),
        abnormal=(Condition("target_between_ratio", above=0.5),),
        source="half of the variance, in batches of eight labels and more: four times what a random order gives at "
        "most; of numbers 97 %, as a batch may be one sequence or one task",
        remedy=(
            "Use `DataLoader(..., shuffle=True)`, or shuffle the list of files and a buffer of samples.",
            "If classes or tasks come in order on purpose (continual learning), no action is needed.",
        ),
        fact=True,
    ),
    Rule(
        name="NotLearning",
        title="Nothing is being learned",
        family="loss_of_guess",
        summary="The loss has stayed at that of a uniform guess: nothing is learned.",
        description="The cross-entropy is {loss_to_uniform_ratio:.3g} times ln(classes), and was no lower than a guess "
        "for {loss_uniform_steps:.0f} steps.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("loss_uniform_steps", above=199.0), Condition("loss_to_uniform_ratio", above=WORSE)),
                for_points=2,
                summary="The loss is far above that of a uniform guess: nothing is learned.",
            ),
            Threshold(severity="warning", when=(Condition("loss_uniform_steps", above=199.0),), for_points=2),
        ),
        abnormal=(Condition("loss_uniform_steps", above=0.0),),
        source="98 % of ln(classes) for 200 steps of eight labels; models of all kinds learn how frequent the classes "
        "are before that",
        remedy=(
            "Check that gradients reach the parameters: requires_grad, a detached loss, frozen layers, skipped steps.",
            "Check that the optimizer holds the parameters of this model, and that its learning rate is not 0.",
            "Check that the labels belong to the inputs: shuffle both in the same order.",
            "Try to overfit one batch: a correct set-up does so in some hundred steps.",
        ),
    ),
    Rule(
        name="InitialLossTooHigh",
        title="The initial logits are too large",
        family="token_loss",
        summary="The loss is far above that of a uniform guess and has never been below it: the logits are too large.",
        description="The cross-entropy is {token_loss:.3g}. The size of the logits puts it {loss_above_uniform:.3g} "
        "nat above ln(classes).",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("loss_above_uniform", above=8.0), Condition("loss_lowest_above_uniform", above=0.5)),
            ),
        ),
        abnormal=(Condition("loss_above_uniform", above=8.0), Condition("loss_lowest_above_uniform", above=0.5)),
        source="8 nat: logits of a deviation of 4, which choose a class at random; usual ones stay below 0.5 nat",
        remedy=(
            "Initialise the last layer, or the tied embedding, with a deviation of 0.02 or 1 / sqrt(width).",
            "If the model was loaded: do its weights and its vocabulary or labels belong together?",
        ),
    ),
)
