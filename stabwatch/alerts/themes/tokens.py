"""Tokens whose representations become the same."""

from __future__ import annotations

from stabwatch.alerts.features import DerivedSignal, Feature, MedianFeature
from stabwatch.alerts.references import CALIBRATED, MEAN_MODE
from stabwatch.alerts.rule import Condition, Rule, Threshold


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        MedianFeature(
            "token_similarity",
            "token_similarity",
            DerivedSignal("token_similarity_median", "Median over layers of token_similarity.", scope="run"),
            rise=DerivedSignal(
                "token_similarity_rise", "token_similarity_median less that of the layers' first values.", scope="run"
            ),
        ),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="TokenCollapse",
        title="Mean-mode collapse: tokens become one",
        family="token_similarity",
        summary="Tokens become one: their representations no longer differ.",
        description="The mean cosine between tokens is {token_similarity_median:.4g} in the median layer, "
        "{token_similarity_rise:.2g} higher than at first.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("token_similarity_median", above=0.97), Condition("token_similarity_rise", above=0.3)),
                for_points=16,
            ),
        ),
        abnormal=(Condition("token_similarity_median", above=0.9), Condition("token_similarity_rise", above=0.2)),
        warm_up=16,
        source=f"1 is the end ({MEAN_MODE}); {CALIBRATED}",
        remedy=(
            "Stop: queries and keys get no gradient any more. Resume from before the onset with a lower learning rate.",
            "For good: take the token mean out of what the branches write (MV-Split), pre-norm, scaled residuals.",
        ),
        references=(MEAN_MODE,),
    ),
)
