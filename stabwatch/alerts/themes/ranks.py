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
WAITS, WAITS_LONG = 0.25, 0.5
"""Shares of a step that others wait for a slow rank. A rank that shares its core with one more process takes twice as
long, so that the others wait for half of the step."""
ENOUGH, ENOUGH_LONG = 5.0, 0.2
"""Seconds that must have been waited in all: processes that take turns on busy cores are slow in turn, for less."""


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

    def __init__(self, name: str, high: str, low: str, rank: str, scale: str, *gauges: DerivedSignal) -> None:
        self._rank = rank
        self.gauges = gauges
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


class SlowRankFeature(SpreadFeature):
    """The time of a step that others wait for the slowest rank, and whether a busy machine explains it."""

    def _begin(self) -> None:
        super()._begin()
        self._waits: deque[float] = deque(maxlen=WINDOW)
        self._waited, self._slow = 0.0, -1.0

    def _observe(self, values: Array) -> dict[str, float] | None:
        found = super()._observe(values)
        if found is None:
            return None
        share, rank = found[self.gauges[0].name], found[self._rank]
        self._waits.append(self._one(self._read[0], values) - self._one(self._read[1], values))
        if not share > WAITS:
            self._waited, self._slow = 0.0, -1.0
        elif rank == self._slow:
            self._waited += self._waits[-1]
        else:
            self._waited, self._slow = sum(self._waits), rank
        return {**found, self.gauges[1].name: self._waited / (ENOUGH_LONG if share > WAITS_LONG else ENOUGH)}


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
