"""Derived signals that compare ranks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, RunFeature, own_signals
from stabwatch.alerts.statistics import Array, Bools, median
from stabwatch.runlog import SeriesKey

WINDOW = 16
SAME = 0.75
"""Share of the window in which it must be the same rank: with batches of different lengths the rank changes."""
WAITS, WAITS_LONG = 0.25, 0.5
"""Shares of a step that others wait for a slow rank. A rank that shares its core with one more process takes twice as
long, so that the others wait for half of the step."""
IN_TURN = 0.9
"""Share of the points in which the slowest rank must be of one group: of four ranks that are slow in turn, any two are
for so long once in a million times."""
LONG = 64
BY_CHANCE = 1e-7
"""Ranks that draw from the same data are equally likely to have the largest loss of a step. Points that are looked at,
and the chance below which it is none: of a million points with windows that overlap, one false alarm in ten at most."""
FAR, CLEAR = 0.5, 3.0
"""Losses are apart by this share. Of two ranks, the one that changed has moved this many times as far."""
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


class SlowRanksFeature(RunFeature):
    """Ranks side by side that are the slowest in turn, as those of one slow host, and how long others wait for them."""

    _SIGNALS = (
        "rank_busy_max_seconds", "rank_busy_others_seconds", "rank_slowest", "ranks_compared", "step_seconds",
    )  # fmt: skip
    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "rank_group_wait_ratio",
            "Share of the step that other ranks wait for a group of slow ranks side by side: median of "
            f"{2 * WINDOW} points, 0 unless the slowest rank is in turn each of a group of at most half of all ranks.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "rank_group_evidence_ratio",
            f"Seconds that others have waited for the same group of ranks so far, over {ENOUGH:g} (over "
            f"{ENOUGH_LONG:g} where they wait for more than half of the step).",
            "ratio",
            "run",
        ),
        DerivedSignal("slow_ranks_first", "First rank of the group of slow ranks; -1: there is none.", "1", "run"),
        DerivedSignal("slow_ranks_last", "Last rank of the group of slow ranks; -1: there is none.", "1", "run"),
    )

    def __init__(self) -> None:
        super().__init__("slow_ranks", *self._SIGNALS)

    def _begin(self) -> None:
        self._past: deque[tuple[float, float, float, float]] = deque(maxlen=2 * WINDOW)
        self._waited, self._slow = 0.0, (-1.0, -1.0)

    def _observe(self, values: Array) -> dict[str, float] | None:
        high, others, rank, ranks, step = (self._one(signal, values) for signal in self._SIGNALS)
        if not all(map(math.isfinite, (high, others, rank, ranks, step))) or not step > 0:
            return None
        self._past.append((rank, high, others, step))
        first, last = self._group(ranks)
        waits = [_waited(h, o, int(ranks), last - first + 1) for _, h, o, _ in self._past] if first >= 0 else [0.0]
        share = median(np.array(waits) / np.array([s for *_, s in self._past])) if first >= 0 else 0.0
        if not share > WAITS:
            self._waited, self._slow = 0.0, (-1.0, -1.0)
        elif (first, last) == self._slow:
            self._waited += waits[-1]
        else:
            self._waited, self._slow = sum(waits), (first, last)
        evidence = self._waited / (ENOUGH_LONG if share > WAITS_LONG else ENOUGH)
        names = [gauge.name for gauge in self.gauges]
        return dict(zip(names, (share, evidence, first, last), strict=True))

    def _group(self, ranks: float) -> tuple[float, float]:
        """The first and the last of the ranks that are slowest in turn; -1 where they are too many, or only one is."""
        found = sorted(rank for rank, *_ in self._past)
        stray = int((1 - IN_TURN) * len(found) / 2)
        first, last = found[stray], found[-1 - stray]
        most = max(found.count(rank) for rank in set(found))
        few = 1 < last - first + 1 <= ranks / 2 and most < SAME * len(found)
        return (first, last) if few and len(found) == 2 * WINDOW else (-1.0, -1.0)

    def measures(self, values: Array) -> Bools:
        """See `blocks`."""
        return np.logical_and.reduce([np.isfinite(self._column(signal, values)) for signal in self._SIGNALS])


def _waited(high: float, others: float, ranks: int, slow: float) -> float:
    """Seconds that the other ranks wait, in the mean, if so many ranks take as long as the slowest."""
    total = others * (ranks - 1) + high
    return max(high - max(total - slow * high, 0.0) / (ranks - slow), 0.0)


class RanksAlikeFeature(RunFeature):
    """Are all ranks given the same batches, where each should have its own?"""

    _SIGNALS = ("rank_loss_alike", "rank_loss_max")
    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "ranks_alike_ratio",
            f"Share of the last {WINDOW} points in which all ranks had the same loss to the last bit; 0 where the loss "
            "hardly changes.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("ranks_alike", *self._SIGNALS)

    def _begin(self) -> None:
        self._past: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def _observe(self, values: Array) -> dict[str, float] | None:
        alike, loss = (self._one(signal, values) for signal in self._SIGNALS)
        if not math.isfinite(alike) or not math.isfinite(loss):
            return None
        self._past.append((alike, loss))
        varies = len({loss for _, loss in self._past}) > WINDOW // 2
        return {"ranks_alike_ratio": sum(alike for alike, _ in self._past) / WINDOW if varies else 0.0}


class RankLossFeature(RunFeature):
    """How far the loss of one rank is above that of the lowest, or below that of the others, and which rank it is.

    Of two ranks it is the one whose loss has left its own past. Where that is not known, it is called the higher one.
    """

    _SIGNALS = ("rank_loss_max", "rank_loss_min", "rank_loss_highest", "rank_loss_lowest", "rank_loss_others")
    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "rank_loss_excess_ratio",
            f"Largest loss of a rank over the smallest, minus one: median of {WINDOW} points, 0 unless it is the same "
            "rank more often than chance makes it, or where of two ranks the other one has changed.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "rank_loss_deficit_ratio",
            f"Mean loss of the other ranks over the smallest, minus one: median of {WINDOW} points, 0 unless it is the "
            "same rank more often than chance makes it; of two ranks, only if that one has changed.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("rank_loss", *self._SIGNALS)

    def _begin(self) -> None:
        self._past: deque[tuple[float, float, float, float]] = deque(maxlen=LONG)
        self._levels: dict[float, deque[float]] = {}
        self._changed = -1.0

    def _observe(self, values: Array) -> dict[str, float] | None:
        high, low, highest, lowest, others = (self._one(signal, values) for signal in self._SIGNALS)
        if not all(map(math.isfinite, (high, low, highest))) or not 0 < low <= high:
            return None
        self._past.append(((high - low) / low, highest, (others - low) / low, lowest))
        excess, rank_high = self._mostly(0)
        deficit, rank_low = self._mostly(2)
        if math.isclose(others, high, rel_tol=1e-5) and highest != lowest:  # there are two ranks
            changed = self._one_that_changed({highest: high, lowest: low}, excess > FAR)
            excess, deficit = (0.0, deficit) if changed == rank_low else (excess, 0.0)
        excess, deficit = excess * self._is_real(0, rank_high), deficit * self._is_real(2, rank_low)
        return {
            "rank_loss_excess_ratio": excess, "rank_loss_deficit_ratio": deficit,
            "rank_loss_highest": rank_high, "rank_loss_lowest": rank_low,
        }  # fmt: skip

    def _mostly(self, column: int) -> tuple[float, float]:
        """The median of a ratio, 0 unless it was mostly of one rank, and the rank that it was of most often."""
        latest = list(self._past)[-WINDOW:]
        ranks = [entry[column + 1] for entry in latest]
        usual = max(set(ranks), key=ranks.count)
        same = ranks.count(usual) >= SAME * len(ranks)
        return (median(np.array([entry[column] for entry in latest])) if same else 0.0), usual

    def _is_real(self, column: int, usual: float) -> bool:
        """Whether it was of one rank more often than chance makes it, in the last points."""
        seen = [entry[place] for entry in self._past for place in (1, 3) if math.isfinite(entry[place])]
        ranks = max(2, int(max(seen, default=0.0)) + 1)
        latest = [entry[column + 1] for entry in self._past][::-1]
        lengths = range(WINDOW, len(latest) + 1, WINDOW // 2)
        return any(_chance(latest[:n].count(usual), n, ranks) < BY_CHANCE for n in lengths)

    def _one_that_changed(self, losses: Mapping[float, float], apart: bool) -> float:
        """Of two ranks that are apart, the one whose loss left its own past; -1 where that is not clear."""
        for rank, loss in losses.items():
            self._levels.setdefault(rank, deque(maxlen=3 * WINDOW)).append(math.log(loss))
        if not apart:
            self._changed = -1.0
        elif self._changed < 0:
            moved = {rank: _moved(levels) for rank, levels in self._levels.items()}
            first, second = sorted(moved, key=lambda rank: moved[rank])[-1:-3:-1]
            if moved[first] > CLEAR * moved[second]:
                self._changed = first
        return self._changed

    def measures(self, values: Array) -> Bools:
        """See `blocks`."""
        return np.logical_and.reduce([np.isfinite(self._column(signal, values)) for signal in self._SIGNALS[:3]])


@lru_cache(maxsize=4096)
def _chance(same: int, points: int, ranks: int) -> float:
    """Probability that one of some ranks is the highest at so many of some points, if all are alike; at most 1."""
    p = 1 / ranks
    tail = sum(math.comb(points, k) * p**k * (1 - p) ** (points - k) for k in range(same, points + 1))
    return min(1.0, ranks * tail)


def _moved(levels: Sequence[float]) -> float:
    """How far the median of the last points is from that of those before; NaN without as many before."""
    past = np.array(levels)
    return abs(median(past[-WINDOW:]) - median(past[:-WINDOW])) if len(past) >= 2 * WINDOW else math.nan
