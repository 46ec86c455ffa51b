"""A loss that jumps together with the data, or alone: other data, a few odd batches, or batches that come again."""

from __future__ import annotations

from stabwatch.alerts.features import Feature, PlainFeature
from stabwatch.alerts.lone_losses import LoneFeature
from stabwatch.alerts.references import PALM
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.small_batches import SmallBatchFeature


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        LoneFeature(),
        PlainFeature("loader_restarted"),
        PlainFeature("random_numbers_repeated"),
        SmallBatchFeature(),
    )


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
    Rule(
        name="SmallBatches",
        title="Small batches have a loss far above all others",
        family="small_batch",
        summary="The loss of each small batch, as the last of an epoch may be, is far above that of whole batches.",
        description="The batch of {samples:.0f} samples has a loss of {loss:.3g}. For {small_batches_high:.0f} small "
        "batches in a row it was above all of the 16 before; of the last five {small_batch_loss_ratio:.2g} times.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("small_batches_high", above=4.5), Condition("small_batch_loss_ratio", above=1.5)),
            ),
        ),
        abnormal=(Condition("small_batches_high", above=0.5),),
        resolve_after=4,
        source="five small batches (less than a quarter of the samples of each of the 16 before) in a row, half as "
        "high again as any before: by chance one in 17 is the highest",
        remedy=(
            "Leave out the last batch of an epoch: `drop_last=True`.",
            "Batch norm of a few samples is mostly noise: use group or layer norm, or larger batches.",
            "Is the loss a sum, or divided by a fixed number of samples?",
        ),
    ),
    Rule(
        name="RandomNumbersRepeat",
        title="Each step draws the same random numbers",
        family="random_numbers_repeated",
        summary="The seed is set in each step: dropout masks and noise are the same ones again and again.",
        description="The forward of the step began with the random state of an earlier step, and drew numbers: the "
        "same as there.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("random_numbers_repeated", above=0.5),), for_points=4),
        ),
        abnormal=(Condition("random_numbers_repeated", above=0.5),),
        source="the state of the generator, to the bit, at four points: it does not come back by itself",
        remedy=(
            "Set the seed once, before the loop: look for `manual_seed` or `seed_everything` in the step, in the "
            "forward, in a transform or in `__getitem__` of the data set.",
            "What needs numbers of its own takes a `torch.Generator`, or `torch.random.fork_rng()`.",
        ),
        fact=True,
    ),
    Rule(
        name="LoaderRestarted",
        title="The loader begins again in each step",
        family="loader_restarted",
        summary="The loop makes a new iterator of its loader in each step: each batch is the first one.",
        description="The batch is the first one of a loader that has several, and was begun again for this step, as it "
        "was for the step before.",
        thresholds=(Threshold(severity="warning", when=(Condition("loader_restarted", above=0.5),), for_points=16),),
        abnormal=(Condition("loader_restarted", above=0.5),),
        source="sixteen steps, each with one batch of an iterator of its own, and the batch of the step before",
        remedy=(
            "Make the iterator once: `for batch in loader`, or `it = iter(loader)` before the loop and `next(it)` in "
            "it.",
            "To go over the data without end: `while True: yield from loader`.",
            "If one batch is learned by heart on purpose, no action is needed.",
        ),
        fact=True,
    ),
)
