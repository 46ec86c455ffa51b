"""Derived signals that compare ranks, and the rules over them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Feature, RunFeature, own_signals
from stabwatch.alerts.references import LLAMA, SDC
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, median
from stabwatch.runlog import SeriesKey

WINDOW = 16
SAME = 0.75
"""Share of the window in which it must be the same rank: with batches of different lengths the rank changes."""


class ReplicaFeature:
    """How far the replica of one rank differs from the others, and which rank it is."""

    name = "replica"
    signal = "replica_difference_ratio"
    gauges: tuple[DerivedSignal, ...] = ()

    def __init__(self) -> None:
        self._columns = LayerColumns(self.signal, "replica_difference_rank")
        self._points = np.empty(0)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        self._columns.bind(keys)
        self._points = np.append(self._points, np.zeros(len(self.layers) - len(self._points)))

    def restart(self) -> None:
        """See Feature."""
        self._points[:] = 0

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        difference, rank = (self._columns.of(signal, values) for signal in self._columns.signals)
        measured = ~np.isnan(difference)
        if not measured.any():
            return None
        self._points += measured
        compared = np.full(len(measured), float(measured.sum()))
        return {
            self.signal: difference,
            "replica_difference_rank": rank,
            "points": self._points.copy(),
            "layers_compared": compared,
        }

    measures = own_signals


class SpreadFeature(RunFeature):
    """How far the highest rank is from the others, if it is mostly the same rank.

    high, low, rank, scale: signals. The spread is (high - low) / scale, as the median of 16 points.
    """

    def __init__(self, name: str, high: str, low: str, rank: str, scale: str, gauge: DerivedSignal) -> None:
        self._rank = rank
        self.gauges = (gauge,)
        self._read = (high, low, rank, scale)
        super().__init__(name, *dict.fromkeys(self._read))

    def _begin(self) -> None:
        self._past: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def _observe(self, values: Array) -> dict[str, float] | None:
        high, low, rank, scale = (self._one(signal, values) for signal in self._read)
        if not all(map(math.isfinite, (high, low, rank, scale))) or not scale > 0:
            return None
        self._past.append(((high - low) / scale, rank))
        ranks = [r for _, r in self._past]
        usual = max(set(ranks), key=ranks.count)
        same = ranks.count(usual) >= SAME * len(ranks)
        share = median(np.array([x for x, _ in self._past])) if same else 0.0
        return {self.gauges[0].name: share, self._rank: usual}

    def measures(self, values: Array) -> Bools:
        """See `blocks`."""
        return np.logical_and.reduce([np.isfinite(self._column(signal, values)) for signal in set(self._read)])


_MOSTLY = f"median of {WINDOW} points, 0 unless it is mostly the same rank."


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        ReplicaFeature(),
        SpreadFeature(
            "slow_rank", "rank_busy_max_seconds", "rank_busy_others_seconds", "rank_slowest", "step_seconds",
            DerivedSignal(
                "rank_wait_ratio",
                f"Share of the step that the other ranks wait for the slowest, in the mean: {_MOSTLY}",
                "ratio",
                "run",
            ),
        ),
        SpreadFeature(
            "rank_loss", "rank_loss_max", "rank_loss_min", "rank_loss_highest", "rank_loss_min",
            DerivedSignal(
                "rank_loss_excess_ratio",
                f"Largest loss of a rank over the smallest, minus one: {_MOSTLY}",
                "ratio",
                "run",
            ),
        ),
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    Rule(
        name="ReplicasDiffer",
        title="Replica divergence",
        family="replica",
        summary="The replicas of the model are no longer identical.",
        description="The weights of {where} on {rank} differ from the others' by "
        "{replica_difference_ratio:.2g} of their sum of squares.",
        thresholds=(Threshold(severity="critical", when=(Condition("replica_difference_ratio", above=1e-6),)),),
        abnormal=(Condition("replica_difference_ratio", above=1e-6),),
        source="replicas do the same arithmetic on the same numbers, so the difference is 0; 1e-6 allows for float32 "
        "sums on devices of different kinds",
        remedy=(
            "If most layers differ since the first steps, gradients are not averaged: see the runbook.",
            "Else resume all ranks from before this step without that rank's device, and run its diagnostics.",
            "If ranks step independently here (local SGD, experts inside DDP), mute this rule for those layers.",
        ),
        references=(SDC, LLAMA),
    ),
    Rule(
        name="SlowRank",
        title="Slow rank",
        family="slow_rank",
        summary="The other ranks wait for a slow rank.",
        description="Rank {rank_slowest:.0f} is the slowest. The others wait {rank_wait_ratio:.0%} of a step for it.",
        thresholds=(Threshold(severity="warning", when=(Condition("rank_wait_ratio", above=0.25),), for_points=4),),
        abnormal=(Condition("rank_wait_ratio", above=0.25),),
        warm_up=WINDOW,
        source="a quarter of the step in the median of 16 points, with the same rank in three quarters of them",
        remedy=(
            "Check its data loader (data_wait_seconds), and its node: clocks, temperature, other jobs.",
            "If it stays slow, replace the node.",
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
            Threshold(severity="warning", when=(Condition("rank_loss_excess_ratio", above=0.5),), for_points=4),
        ),
        abnormal=(Condition("rank_loss_excess_ratio", above=0.5),),
        warm_up=WINDOW,
        source="ranks sample one distribution, so the highest rank changes from step to step; 50% above the "
        "smallest in "
        "the median of 16 points, with the same rank in three quarters of them",
        remedy=(
            "Check the data of that rank: its shard, its preprocessing, its tokenizer version.",
            "If its data is fine and ReplicasDiffer does not fire, replace the device and run its diagnostics.",
        ),
        references=(SDC, LLAMA),
    ),
)
