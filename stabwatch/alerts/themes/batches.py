"""A loss that jumps together with the data, or alone: other data, a few odd batches, or batches that come again."""

from __future__ import annotations

from stabwatch.alerts.features import Feature
from stabwatch.alerts.lone_losses import LoneFeature
from stabwatch.alerts.references import PALM
from stabwatch.alerts.rule import Condition, Rule, Threshold


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (LoneFeature(),)


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
    Rule(
        name="LoneLosses",
        title="Lone losses far above all others",
        family="loss_lone",
        summary="Now and then the loss of one batch is as high as at first, among others that are far below it.",
        description="{loss_lone_records:.0f} losses of the last 256 stood alone. The last one, at step "
        "{loss_lone_step:.0f}, was {loss_lone_ratio:.3g} times the largest around it, and {loss_lone_apart:.0f} steps "
        "after the one before.",
        thresholds=(Threshold(severity="warning", when=(Condition("loss_lone_records", above=2.5),)),),
        abnormal=(Condition("loss_lone_records", above=0.5),),
        source="three batches of eight samples and more that the model gets as wrong as at first, while it gets the "
        "eight before and the eight after right: one wrong sample among many does not do that, and chance neither",
        remedy=(
            "Look at the batches of these steps: wrong labels of a shard, blanks after a failed read, another "
            "preprocessing in one worker.",
            "How many steps are they apart? That number is the length of a list, the number of shards or of workers.",
            "If different data are mixed on purpose, mix them within each batch.",
        ),
    ),
)
