"""Token collapse: the representations of all tokens become the same."""

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
                "token_similarity_rise",
                "token_similarity_median minus the median of the layers' first values.",
                scope="run",
            ),
        ),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="TokenCollapse",
        title="Token collapse",
        family="token_similarity",
        summary="Rank collapse: the representations of all tokens have become nearly identical.",
        description="The mean cosine between tokens is {token_similarity_median:.4g} in the median layer, "
        "{token_similarity_rise:.2g} higher than at the start.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("token_similarity_median", above=0.97), Condition("token_similarity_rise", above=0.3)),
                for_points=16,
            ),
        ),
        abnormal=(Condition("token_similarity_median", above=0.9), Condition("token_similarity_rise", above=0.2)),
        warm_up=16,
        source=f"at 1 all tokens are identical ({MEAN_MODE}); {CALIBRATED}",
        remedy=(
            "Stop: queries and keys no longer get a gradient. Resume from before the onset with a lower learning rate.",
            "Long term: remove the token mean from branch outputs (MV-Split), pre-norm, scaled residual branches.",
        ),
        references=(MEAN_MODE,),
    ),
)
