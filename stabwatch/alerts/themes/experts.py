"""Mixtures of experts: router collapse and dropped tokens."""

from __future__ import annotations

from stabwatch.alerts.features import Feature, PlainFeature
from stabwatch.alerts.references import CALIBRATED, SWITCH
from stabwatch.alerts.rule import Condition, Rule, Threshold


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (PlainFeature("router_max_violation"), PlainFeature("router_dropped_ratio"))


RULES: tuple[Rule, ...] = (
    Rule(
        name="RouterCollapse",
        title="Router collapse",
        family="router_max_violation",
        summary="A router sends nearly everything to one expert.",
        description="The busiest expert of {where} has {router_max_violation:.3g} times more than its share.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("router_max_violation", above=2.5),), for_points=64),
        ),
        abnormal=(Condition("router_max_violation", above=2.0),),
        source=f"3 is all tokens to one of four experts, or to the same two of eight; {CALIBRATED}",
        remedy=(
            "Raise the weight of the load-balancing loss, or use a bias per expert; lower the router's learning rate.",
            "Resume from before the onset: experts that got nothing have learned nothing.",
        ),
        references=(SWITCH,),
    ),
    Rule(
        name="ExpertTokensDropped",
        title="A router drops tokens",
        family="router_dropped_ratio",
        summary="Experts are full, and tokens are dropped.",
        description="{router_dropped_ratio:.0%} of the assignments of {where} are beyond the experts' capacity.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("router_dropped_ratio", above=0.3),), for_points=64),
        ),
        abnormal=(Condition("router_dropped_ratio", above=0.2),),
        source=f"{SWITCH}: below 1% once balanced; 0.3 for 64 points, as routers begin unbalanced",
        remedy=(
            "Raise the weight of the load-balancing loss; a larger capacity factor meanwhile.",
            "Is the router collapsing (RouterCollapse)? Then resume from before the onset.",
        ),
        references=(SWITCH,),
    ),
)
