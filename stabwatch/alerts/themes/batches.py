"""A loss that jumps together with the data: other data, or a few odd batches. The numbers are those of the loss."""

from __future__ import annotations

from stabwatch.alerts.features import Feature
from stabwatch.alerts.references import PALM
from stabwatch.alerts.rule import Condition, Rule, Threshold


def features() -> tuple[Feature, ...]:
    """None of its own."""
    return ()


RULES: tuple[Rule, ...] = (
    Rule(
        name="OddBatches",
        title="Batches unlike those before and after",
        family="loss",
        summary="Some batches were unlike those before and after them, and the loss jumped with them.",
        description="For {loss_odd_batches:.0f} records the batches were unlike those before, and the loss was high; "
        "now they are like those before.",
        thresholds=(Threshold(severity="warning", when=(Condition("loss_odd_batches", above=0.5),)),),
        abnormal=(Condition("loss_odd_batches", above=0.5),),
        warm_up=24,
        resolve_after=20,
        source="twenty times the distance that chance gives, and like those before again within 48 records: other data "
        "stay longer",
        remedy=(
            "Check the batches of these steps. If the loss does not recover, resume from before them and skip them.",
            "If different data are mixed on purpose, mix them within each batch.",
        ),
        references=(PALM,),
    ),
)
