"""Samples of a batch that are all the same."""

from __future__ import annotations

from stabwatch.alerts.features import Feature, PlainFeature
from stabwatch.alerts.rule import Condition, Rule, Threshold


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (PlainFeature("input_alike_ratio"),)


RULES: tuple[Rule, ...] = (
    Rule(
        name="InputsConstant",
        title="All samples of a batch are the same",
        family="input_alike_ratio",
        summary="The samples of a batch are all the same: there is nothing to tell them apart by.",
        description="{input_alike_ratio:.0%} of the samples of a batch equal its first one.",
        thresholds=(Threshold(severity="warning", when=(Condition("input_alike_ratio", above=0.999),), for_points=4),),
        abnormal=(Condition("input_alike_ratio", above=0.999),),
        source="all of eight samples and more, at four points: an environment that begins in one state differs later",
        remedy=(
            "Print a batch. Are pixels divided as whole numbers, or scaled twice? Then each input is zero.",
            "Is each token the unknown one? Then the tokenizer does not belong to the data.",
            "Look for a mask, a clamp or a padding that covers all of the input.",
        ),
        fact=True,
    ),
)
