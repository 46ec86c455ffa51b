"""The answer is in the input, targets are shifted, batches come again, losses are summed or have the wrong sign."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Feature, PlainFeature, RunFeature, own_signals
from stabwatch.alerts.objectives import EQUAL, OwnData
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import TINY, Array, median

PAIRS = 48
"""Records over which batches are compared."""
LAST = 4
"""Points whose median is compared with the first ones."""


class OrderFeature(RunFeature):
    """Where the targets of a language model stand in its input."""

    def __init__(self) -> None:
        super().__init__(
            "target_order",
            "target_own_token_ratio",
            "target_next_token_ratio",
            "target_second_token_ratio",
            "attention_open_ratio",
            "attention_causal_ratio",
            "target_common_ratio",
            "target_end_ratio",
        )

    def _observe(self, values: Array) -> dict[str, float] | None:
        numbers = {signal: self._one(signal, values) for signal in self._columns.signals}
        return None if math.isnan(numbers[self.signal]) else numbers

    measures = own_signals


class AccumulationFeature(RunFeature):
    """The trained loss over the cross-entropy of the step: the number of micro-batches, where their losses are summed.

    Beside it the cross-entropy of the last points over that of the first ones, and of a guess: is anything learned?
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_to_passes_ratio", "Trained loss over cross-entropy and number of backward passes.", "ratio", "run"
        ),
        DerivedSignal(
            "token_loss_to_first_ratio",
            f"Median of the last {LAST} cross-entropies over that of the first.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "token_loss_to_guess_ratio",
            f"Median of the last {LAST} cross-entropies over ln(classes).",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("accumulation", "loss", "token_loss", "backward_passes", "target_classes")

    def _begin(self) -> None:
        self._first: list[float] = []
        self._last: list[float] = []

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss, tokens, passes, classes = (self._one(signal, values) for signal in self._columns.signals)
        if not math.isfinite(loss + tokens) or not passes > 0 or abs(tokens) < TINY:
            return None
        self._first = self._first if len(self._first) == LAST else [*self._first, tokens]
        self._last = [*self._last[1 - LAST :], tokens]
        full = len(self._last) == LAST
        now = median(np.array(self._last)) if full else math.nan
        guess = math.log(classes) if classes >= 2 else math.nan
        numbers = (loss / tokens / passes, now / median(np.array(self._first)), now / guess)
        return dict(zip((g.name for g in self.gauges), numbers, strict=True)) | {"backward_passes": passes}

    measures = own_signals


class RepeatFeature(RunFeature):
    """How often the batch of a step is that of the step before.

    A model that makes its own data (it is called without gradients in training mode, or a copy of it is) learns from
    them several times: where a loss that compares outputs with targets is seen, and is not what is trained, but a part
    of it (a value beside a policy), nothing is judged. Nor is it of one of two players: a critic is called for the
    actor's loss with the batch that it learned from.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "batch_repeated_ratio", f"Share of {PAIRS} records with the batch of the one before.", "ratio", "run"
        ),
        DerivedSignal("batch_distinct", f"How many times the batch has changed in {PAIRS} records.", "1", "run"),
    )

    def __init__(self) -> None:
        super().__init__(
            "batch_repeats", "batch_repeated", "calls_without_gradient", "opponent_steps", "loss", "token_loss",
            "compared_loss",
        )  # fmt: skip

    def _begin(self) -> None:
        self._repeats: deque[bool] = deque(maxlen=PAIRS)
        self._own = OwnData()
        self._compares = True

    def _observe(self, values: Array) -> dict[str, float] | None:
        repeated, acted, opposed, loss, *seen = (self._one(signal, values) for signal in self._columns.signals)
        self._own.record(acted, opposed)
        if not all(map(math.isnan, seen)):
            self._compares = any(abs(loss - x) <= EQUAL * abs(x) for x in seen)
        if math.isnan(repeated):
            return None
        self._repeats.append(repeated > 0)
        judged = self._compares and not self._own.made
        full = len(self._repeats) == PAIRS and judged
        share = sum(self._repeats) / PAIRS if full else math.nan
        return dict(zip((g.name for g in self.gauges), (share, PAIRS * (1 - share)), strict=True))

    measures = own_signals


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (OrderFeature(), PlainFeature("target_in_input_ratio"), RepeatFeature(), AccumulationFeature())


_ALL = 0.98
_FEW = 0.5
_ENDLESS = (Condition("target_end_ratio", below=1e-9), Condition("target_next_token_ratio", above=0.9))
_SEEN = (
    Condition("target_own_token_ratio", above=_FEW, below=_ALL),
    Condition("target_next_token_ratio", below=_FEW),
    Condition("attention_open_ratio", above=_ALL),
)


def _order(name: str, title: str, summary: str, description: str, when: tuple[Condition, ...], *remedy: str) -> Rule:
    return Rule(
        name=name,
        title=title,
        family="target_order",
        summary=summary,
        description=description,
        thresholds=(Threshold(severity="warning", when=when, for_points=2),),
        abnormal=when,
        source="98 % of the targets are a certain token of the input; by chance it is a third at most",
        remedy=remedy,
        fact=True,
    )


RULES: tuple[Rule, ...] = (
    _order(
        "TargetsShiftedTwice",
        "Targets are shifted twice",
        "The targets are two tokens ahead of the inputs: they were shifted by the data and again by the model.",
        "{target_second_token_ratio:.0%} of the targets are the token after the next of the input.",
        (Condition("target_second_token_ratio", above=_ALL), Condition("target_next_token_ratio", below=_FEW)),
        "Shift once: give `labels` equal to `input_ids` to a model that shifts them itself.",
    ),
    _order(
        "TargetsNotShifted",
        "Targets are not shifted",
        "Each target is the token at its own place, which a causal model sees: it learns to copy.",
        "{target_own_token_ratio:.0%} of the targets are the token at their own place.",
        (
            Condition("target_own_token_ratio", above=_ALL),
            Condition("target_next_token_ratio", below=_FEW),
            Condition("attention_causal_ratio", above=_FEW),
        ),
        "Guess the next token: logits[:, :-1] against tokens[:, 1:].",
    ),
    _order(
        "CausalMaskMissing",
        "The causal mask is missing",
        "The targets are the next tokens of the input, and the model sees the whole input: the answer can be copied.",
        "{target_next_token_ratio:.0%} of the targets are the next token of the input, and nothing hides it: attention "
        "has no mask, or one that leaves it to be seen, or a recurrent layer reads in both directions.",
        (
            Condition("target_next_token_ratio", above=_ALL),
            Condition("target_own_token_ratio", below=0.9),
            Condition("attention_open_ratio", above=_FEW),
        ),
        "Call `scaled_dot_product_attention` with `is_causal=True`, or give the model its mask.",
        "Is the mask of the right kind? True means `may be seen` to `scaled_dot_product_attention`, and `may not be "
        "seen` to `nn.MultiheadAttention` and `nn.Transformer`; numbers are added to scores: 0 to see, -inf to hide.",
        "Leave out `bidirectional=True`.",
    ),
    Rule(
        name="TargetsNotHidden",
        title="Most targets are not hidden",
        family="target_order",
        summary="Most targets are the token at their own place, and the model sees it there: it learns to copy.",
        description="{target_own_token_ratio:.0%} of the targets are the token of the input at their own place, and "
        "attention sees all of the input.",
        thresholds=(Threshold(severity="warning", when=_SEEN, for_points=4),),
        abnormal=_SEEN,
        source="more than half of the targets, at four points; of a masked language model that counts hidden tokens "
        "alone a tenth are, as BERT leaves a tenth of them as they are",
        remedy=(
            "Set the labels of tokens that are not hidden to the ignored index (-100), as "
            "`DataCollatorForLanguageModeling` does.",
            "If the model is to rebuild all of a noisy text, mute this rule.",
        ),
        references=("Devlin et al. 2019, BERT",),
        fact=True,
    ),
    Rule(
        name="EndNeverTaught",
        title="The end of a text is never a target",
        family="target_order",
        summary="The token that ends a text is in the input and never a target: the model does not learn to stop.",
        description="Of the places before a token that ends a text (`config.eos_token_id`), {target_end_ratio:.0%} "
        "have it as their target.",
        thresholds=(Threshold(severity="warning", when=_ENDLESS, for_points=6),),
        abnormal=_ENDLESS,
        source="none at six points, where nearly all targets are the next token: a text that is trained to its end has "
        "one, also where only answers count",
        remedy=(
            "Padding is often the same token (`pad_token = eos_token`), and a collator that ignores padding ignores "
            "both: give padding a token of its own, or mask labels by the attention mask.",
            "Does the template end the last answer with this token?",
            "If texts are cut and never end, mute this rule.",
        ),
        fact=True,
    ),
    Rule(
        name="TargetsMostlyOne",
        title="Nearly all targets are one token",
        family="target_order",
        summary="Nearly all targets of the language model are one and the same token: padding counts in the loss.",
        description="{target_common_ratio:.0%} of the targets are the most frequent one.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("target_common_ratio", above=0.6), Condition("target_next_token_ratio", above=0.9)),
                for_points=4,
            ),
        ),
        abnormal=(Condition("target_common_ratio", above=0.6), Condition("target_next_token_ratio", above=0.9)),
        source="three in five targets, at four points: the most frequent token of a text is one in five at most (a "
        "space among bytes)",
        remedy=(
            "Set the labels of padding to the ignored index (-100), or give the loss `ignore_index`.",
            "Does `pad_token` equal a token that counts? Mask by the attention mask, not by the token.",
            "Pack short sequences, or sort them by length: most of what is computed is padding.",
        ),
        fact=True,
    ),
    Rule(
        name="TargetInInput",
        title="The target is in the input",
        family="target_in_input_ratio",
        summary="A column of the input is the target itself: what is learned is to copy it.",
        description="In {target_in_input_ratio:.0%} of the samples one and the same number of the input is the target.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("target_in_input_ratio", above=0.99),), for_points=3),
        ),
        abnormal=(Condition("target_in_input_ratio", above=0.99),),
        source="all samples of three batches of eight and more, whose targets differ, in every loss of the "
        "step: one loss among others may be there to rebuild the input",
        remedy=(
            "Leave the column out: a window that ends one step too late, a label among the features.",
            "Compare with a model that sees this column alone.",
        ),
        fact=True,
    ),
    Rule(
        name="RepeatedBatches",
        title="The same batch comes several times in a row",
        family="batch_repeats",
        summary="Batches come several times in a row: loader workers draw alike, or the loop does not advance.",
        description=f"{{batch_repeated_ratio:.0%}} of the last {PAIRS} steps had the batch of the step before: the "
        "batch has changed {batch_distinct:.0f} times.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("batch_repeated_ratio", above=0.45), Condition("batch_distinct", above=11.5)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("batch_repeated_ratio", above=0.3), Condition("batch_distinct", above=11.5)),
        source="nearly every second step, among a dozen different batches and more; a batch that never changes (the "
        "whole data set) is no repetition, and reinforcement learning goes over its data several times; nothing where "
        "a comparison with targets is only a part of the loss",
        remedy=(
            "Seed each loader worker: `worker_init_fn`, with a generator of its own in each (NumPy's is copied).",
            "If each batch is used several times on purpose, announce it or mute this rule.",
        ),
        fact=True,
    ),
    Rule(
        name="AccumulationNotAveraged",
        title="Micro-batches are summed and not averaged",
        family="accumulation",
        summary="The losses of a step's micro-batches are summed where their mean is meant, and nothing is learned.",
        description="{backward_passes:.0f} backward passes a step add up whole losses, so that the gradient is as many "
        "times too large; the cross-entropy is {token_loss_to_first_ratio:.2g} times what it was at first.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("loss_to_passes_ratio", above=0.9, below=1.1),
                    Condition("backward_passes", above=3.5),
                    Condition("token_loss_to_first_ratio", above=0.98),
                ),
                for_points=3,
            ),
        ),
        abnormal=(
            Condition("loss_to_passes_ratio", above=0.9, below=1.1),
            Condition("backward_passes", above=3.5),
            Condition("token_loss_to_first_ratio", above=0.98),
        ),
        warm_up=8,
        source="the trained loss is the cross-entropy times the number of passes, four and more, and nothing is "
        "learned in eleven records: a sum that is meant has a learning rate that suits it",
        remedy=("Divide the loss of each micro-batch by their number, or the learning rate by it.",),
        fact=True,
    ),
    Rule(
        name="CrossEntropyMaximised",
        title="The sign of the loss is wrong",
        family="accumulation",
        summary="The loss that is trained is minus the cross-entropy, which rises: the model learns to be wrong.",
        description="The trained loss is the cross-entropy with a minus; the cross-entropy is "
        "{token_loss_to_first_ratio:.3g} times what it was at first, and {token_loss_to_guess_ratio:.3g} times that of "
        "a guess.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("loss_to_passes_ratio", above=-1.02, below=-0.98),
                    Condition("token_loss_to_first_ratio", above=1.02),
                    Condition("token_loss_to_guess_ratio", above=1.1),
                ),
                for_points=3,
            ),
        ),
        abnormal=(
            Condition("loss_to_passes_ratio", above=-1.02, below=-0.98),
            Condition("token_loss_to_first_ratio", above=1.0),
            Condition("token_loss_to_guess_ratio", above=1.0),
        ),
        source="that of actions which a policy has drawn itself is its entropy, on average, which is never above "
        "ln(classes)",
        remedy=(
            "Take the minus away: `cross_entropy` and `nll_loss` have it already.",
            "If the model is to forget these data, mute this rule.",
        ),
        fact=True,
    ),
)
