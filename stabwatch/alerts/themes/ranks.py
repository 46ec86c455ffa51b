"""Rules that compare ranks."""

from __future__ import annotations

from stabwatch.alerts.features import DerivedSignal, Feature
from stabwatch.alerts.rank_features import (
    ENOUGH,
    ENOUGH_LONG,
    FAR,
    WAITS,
    WINDOW,
    RankLossFeature,
    RanksAlikeFeature,
    ReplicaFeature,
    SlowRankFeature,
    SlowRanksFeature,
)
from stabwatch.alerts.references import LLAMA, SDC
from stabwatch.alerts.rule import Condition, Rule, Threshold

_MOSTLY = f"median of {WINDOW} points, 0 unless it is mostly the same rank."


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        ReplicaFeature(),
        SlowRankFeature(
            "slow_rank", "rank_busy_max_seconds", "rank_busy_others_seconds", "rank_slowest", "step_seconds",
            DerivedSignal(
                "rank_wait_ratio",
                f"Share of the step that the other ranks wait for the slowest, in the mean: {_MOSTLY}",
                "ratio",
                "run",
            ),
            DerivedSignal(
                "rank_wait_evidence_ratio",
                f"Seconds that others have waited for the same slowest rank so far, over {ENOUGH:g} (over "
                f"{ENOUGH_LONG:g} where they wait for more than half of the step): more than a busy machine explains, "
                "if above 1.",
                "ratio",
                "run",
            ),
        ),
        SlowRanksFeature(),
        RankLossFeature(),
        RanksAlikeFeature(),
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    Rule(
        name="ReplicasDiffer",
        title="Replica divergence",
        family="replica",
        summary="The replicas of the model are no longer identical.",
        description="{where} on {rank} differs from the others, {apart}.",
        thresholds=(
            Threshold(
                severity="critical",
                when=(
                    Condition("replica_difference_ratio", above=0.0),
                    Condition("replica_difference_rank", above=-1.5),
                ),
            ),
            Threshold(
                severity="warning",
                when=(Condition("replica_difference_ratio", above=0.0),),
                for_points=12,
                summary="The ranks train apart: their gradients are not averaged. If that is meant (local SGD), this "
                "ends with the first average of their weights.",
            ),
        ),
        abnormal=(Condition("replica_difference_ratio", above=0.0),),
        resolve_after=1,
        source="replicas do the same arithmetic on the same numbers, so their bits are equal; what rounding explains "
        "counts as 0. A warning only where all step on their own, as the rank -2 says (docs/design.md)",
        remedy=(
            "If most layers differ since the first steps, gradients are not averaged: see the runbook.",
            "Else resume all ranks from before this step without that rank's device, and run its diagnostics.",
            "If ranks step independently by design (experts inside DDP), mute this rule for those layers.",
        ),
        references=(SDC, LLAMA),
    ),
    Rule(
        name="SlowRank",
        title="Slow rank",
        family="slow_rank",
        summary="The other ranks wait for a slow rank.",
        description="Rank {rank_slowest:.0f} is the slowest. The others wait {rank_wait_ratio:.0%} of a step for it.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("rank_wait_ratio", above=WAITS), Condition("rank_wait_evidence_ratio", above=1.0)),
                for_points=4,
            ),
        ),
        abnormal=(Condition("rank_wait_ratio", above=WAITS),),
        warm_up=WINDOW,
        source="a quarter of the step in the median of 16 points, the same rank in three quarters of them; healthy "
        "ranks on busy cores are slow in turn for less than half a second in all (docs/which-rank.md)",
        remedy=(
            "Check its data loader (data_wait_seconds), and its node: clocks, temperature, other jobs.",
            "If it stays slow, replace the node.",
        ),
        references=(LLAMA,),
    ),
    Rule(
        name="SlowHost",
        title="Slow ranks side by side",
        family="slow_ranks",
        summary="The other ranks wait for several ranks that are slow in turn.",
        description="The slowest rank is in turn one of rank {slow_ranks_first:.0f} to rank {slow_ranks_last:.0f}. The "
        "others wait {rank_group_wait_ratio:.0%} of a step for them. Ranks with such numbers are often on one host.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("rank_group_wait_ratio", above=WAITS),
                    Condition("rank_group_evidence_ratio", above=1.0),
                ),
                for_points=4,
            ),
        ),
        abnormal=(Condition("rank_group_wait_ratio", above=WAITS),),
        warm_up=2 * WINDOW,
        source="as SlowRank, where the slowest rank is in nine tenths of 32 points one of a few ranks side by side",
        remedy=(
            "Check their host: processor clocks, memory, disk, other jobs, and the number of data-loader workers.",
            "If they stay slow, replace the host.",
        ),
        references=(LLAMA,),
    ),
    Rule(
        name="RankLossHigher",
        title="High loss on one rank",
        family="rank_loss",
        summary="The loss of one rank is persistently higher than that of the others.",
        description="Rank {rank_loss_highest:.0f} has the largest loss: {rank_loss_excess_ratio:.0%} above the "
        "smallest.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("rank_loss_excess_ratio", above=FAR),), for_points=4),
        ),
        abnormal=(Condition("rank_loss_excess_ratio", above=FAR),),
        warm_up=WINDOW,
        source="ranks sample one distribution, so the highest rank changes from step to step; 50% above the "
        "smallest in "
        "the median of 16 points, with the same rank so often in up to 64 that equal ranks have a chance of 1e-7",
        remedy=(
            "Check the data of that rank: its shard, its preprocessing, its tokenizer version.",
            "If its data is fine and ReplicasDiffer does not fire, replace the device and run its diagnostics.",
        ),
        references=(SDC, LLAMA),
    ),
    Rule(
        name="RankLossLower",
        title="Low loss on one rank",
        family="rank_loss",
        summary="The loss of one rank is persistently lower than that of the others.",
        description="Rank {rank_loss_lowest:.0f} has the smallest loss: the mean of the others is "
        "{rank_loss_deficit_ratio:.0%} above it.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("rank_loss_deficit_ratio", above=FAR),), for_points=4),
        ),
        abnormal=(Condition("rank_loss_deficit_ratio", above=FAR),),
        warm_up=WINDOW,
        source="as RankLossHigher: the others are 50% above it in the median of 16 points, with the same rank in three "
        "quarters of them",
        remedy=(
            "Check the data of that rank: does it get the same few samples again, padding, or labels in its inputs?",
            "If its data is fine and ReplicasDiffer does not fire, replace the device and run its diagnostics.",
        ),
        references=(SDC, LLAMA),
    ),
    Rule(
        name="RanksReadAlike",
        title="Ranks train on the same batches",
        family="ranks_alike",
        summary="All ranks have the same loss in each step: they are given the same batches.",
        description="The losses of all ranks were the same to the last bit in {ranks_alike_ratio:.0%} of the last "
        f"{WINDOW} points.",
        thresholds=(Threshold(severity="warning", when=(Condition("ranks_alike_ratio", above=0.99),), for_points=4),),
        abnormal=(Condition("ranks_alike_ratio", above=0.99),),
        warm_up=WINDOW,
        source="losses of different batches are equal to the last bit once in millions of times; a loss that hardly "
        "changes is left out",
        remedy=(
            "Give the loader a `DistributedSampler`, or split its source by rank: all ranks do the work of one now.",
            "Are batches drawn at random? Seed the draw with the rank.",
            "If all ranks are meant to train on the same batch (a test that it can be learned), mute this rule.",
        ),
    ),
)
