"""Mixtures of experts: router collapse and dropped tokens."""

from __future__ import annotations

from stabwatch.alerts.features import Feature, LastingFeature, PlainFeature
from stabwatch.alerts.references import CALIBRATED, SWITCH
from stabwatch.alerts.rule import Condition, Rule, Threshold


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (LastingFeature("router_max_violation", above=2.5), PlainFeature("router_dropped_ratio"))


RULES: tuple[Rule, ...] = (
    Rule(
        name="RouterCollapse",
        title="Router collapse",
        family="router_max_violation",
        summary="A router sends nearly all tokens to one expert, or to a few.",
        description="The load of the busiest expert of {where} exceeds the mean load by a factor of "
        "{router_max_violation:.3g}.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("router_max_violation", above=2.5),
                    Condition("router_max_violation_steps", above=62.0),
                ),
                for_points=2,
            ),
        ),
        abnormal=(Condition("router_max_violation", above=2.0),),
        source=f"3: all tokens go to one of four experts, or to the same two of eight; for 63 steps; {CALIBRATED}",
        remedy=(
            "Raise the weight of the load-balancing loss, or add a bias per expert. Lower the router's learning rate.",
            "Resume from a checkpoint before the onset: experts without tokens were not trained.",
        ),
        references=(SWITCH,),
    ),
    Rule(
        name="ExpertTokensDropped",
        title="Dropped expert tokens",
        family="router_dropped_ratio",
        summary="Experts are over capacity, and their layer drops tokens.",
        description="{router_dropped_ratio:.0%} of the assignments of {where} exceed the experts' capacity.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("router_dropped_ratio", above=0.3),), for_points=64),
        ),
        abnormal=(Condition("router_dropped_ratio", above=0.2),),
        source=f"{SWITCH}: below 1% when balanced; 0.3 for 64 points, because routers start unbalanced",
        remedy=(
            "Raise the weight of the load-balancing loss. Until it works, use a larger capacity factor.",
            "If RouterCollapse fires too, resume from a checkpoint before the onset.",
        ),
        references=(SWITCH,),
    ),
)
