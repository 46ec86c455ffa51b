"""State of one rule: onset, firing and resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabwatch.alerts.blocks import BlockGauges
from stabwatch.alerts.rule import Condition, Rule
from stabwatch.alerts.statistics import Array, Bools, Ints, run_lengths


@dataclass(frozen=True)
class Transition:
    """A rule that fires or resolves at one layer. level: index of the threshold, their number for a resolution.

    record: its position in the block. onset: first step outside the normal range, -1 if it is within. context: numbers
    of the run just before that step.
    """

    record: int
    layer: int
    level: int
    onset: int
    context: dict[str, float]


class RuleState:
    """State of one rule over all layers of its feature: onset, firing and resolution, counted in measured points."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.since = np.full(0, -1, dtype=np.int64)
        self.points_firing = np.zeros((len(rule.thresholds), 0), dtype=np.int64)
        self.points_normal = np.zeros(0, dtype=np.int64)
        self.level = np.zeros(0, dtype=np.int64)
        """Index of the threshold that fires, by layer; len(thresholds) if none does."""
        self.context: dict[int, dict[str, float]] = {}
        self._quiet = True
        """No layer fires, and none is outside its normal range."""

    def grow(self, layers: int) -> None:
        """Add state for new layers."""
        more = layers - len(self.since)
        if not more:
            return
        self.since = np.append(self.since, np.full(more, -1, dtype=np.int64))
        self.points_firing = np.pad(self.points_firing, ((0, 0), (0, more)))
        self.points_normal = np.append(self.points_normal, np.zeros(more, dtype=np.int64))
        self.level = np.append(self.level, np.full(more, len(self.rule.thresholds), dtype=np.int64))

    def update(self, step: int, gauges: dict[str, Array], context: dict[str, float]) -> list[Transition]:
        """Judge one record. context: the numbers of the run before it."""
        self.grow(len(gauges["points"]))
        abnormal = self._all(self.rule.abnormal, gauges)
        if self._quiet and not np.count_nonzero(abnormal):
            return []  # every threshold implies `abnormal`, so none can be met
        measured = ~np.isnan(gauges[self.rule.thresholds[0].when[0].gauge])
        judged = measured & (gauges["points"] >= self.rule.warm_up)
        abnormal &= judged
        if self._quiet and not np.count_nonzero(abnormal):
            return []
        self._mark_onset(step, judged, abnormal, context)
        fires = np.full(len(self.since), len(self.rule.thresholds))
        for i, level in reversed(list(enumerate(self.rule.thresholds))):
            met = judged & self._all(level.when, gauges)
            self.points_firing[i] = np.where(judged, np.where(met, self.points_firing[i] + 1, 0), self.points_firing[i])
            fires = np.where(self.points_firing[i] >= level.for_points, i, fires)
        self.points_normal = np.where(judged, np.where(abnormal, 0, self.points_normal + 1), self.points_normal)
        out = self._transitions(judged, fires)
        self._quiet = bool((self.level == len(self.rule.thresholds)).all() and (self.since < 0).all())
        return out

    def update_many(
        self, records: Ints, steps: Ints, gauges: BlockGauges, context: Callable[[int], dict[str, float]]
    ) -> list[Transition]:
        """Judge records of a block: the same transitions and state as one by one.

        records: which of the block the gauges are of. steps: of all of the block. context: the numbers of the run
        before a record of the block.
        """
        self.grow(gauges.shape[1])
        abnormal = gauges.holds(self.rule.abnormal)
        if self._quiet and not np.count_nonzero(abnormal):
            return []
        measured = ~np.isnan(gauges.of(self.rule.thresholds[0].when[0].gauge))
        judged = measured & (gauges.of("points") >= self.rule.warm_up)
        abnormal &= judged
        if self._quiet and not np.count_nonzero(abnormal):
            return []
        none = len(self.rule.thresholds)
        active = (self.level < none) | (self.since >= 0) | abnormal.any(axis=0)
        out: list[Transition] = []
        for layer in np.flatnonzero(active).tolist():
            points = np.flatnonzero(judged[:, layer])
            if len(points):
                fires, normal = self._counted(layer, points, abnormal[points, layer], gauges)
                out += self._walk(layer, records[points], steps, abnormal[points, layer], fires, normal, context)
        self._quiet = bool((self.level == none).all() and (self.since < 0).all())
        return sorted(out, key=lambda transition: transition.record)

    def _walk(
        self,
        layer: int,
        points: Ints,
        steps: Ints,
        abnormal: Bools,
        fires: Ints,
        normal: Ints,
        context: Callable[[int], dict[str, float]],
    ) -> list[Transition]:
        """The transitions of one layer at its judged points, from those at which something can change."""
        none = len(self.rule.thresholds)
        change = normal == self.rule.resolve_after
        change[0] = True
        change[1:] |= (fires[1:] != fires[:-1]) | (abnormal[1:] != abnormal[:-1])
        change[1:] |= change[:-1]  # after a resolution the next abnormal point is an onset
        level, since = int(self.level[layer]), int(self.since[layer])
        out: list[Transition] = []
        for i in np.flatnonzero(change).tolist():
            record = int(points[i])
            if abnormal[i] and since < 0:
                since, self.context[layer] = int(steps[record]), context(record)
            elif not abnormal[i] and level == none:
                since = -1
            graver, over = fires[i] < level, level < none and normal[i] >= self.rule.resolve_after
            if graver or over:
                level, since = int(fires[i]) if graver else none, -1 if over else since
                out.append(Transition(record, layer, level, since, self.context.get(layer, {})))
        self.level[layer], self.since[layer] = level, since
        return out

    def _counted(self, layer: int, points: Ints, abnormal: Bools, gauges: BlockGauges) -> tuple[Ints, Ints]:
        """At each point: the gravest threshold that fires, and the normal points in a row."""
        none = len(self.rule.thresholds)
        fires = np.full(len(points), none)
        for i, threshold in reversed(list(enumerate(self.rule.thresholds))):
            met = gauges.holds(threshold.when, layer)[points, 0]
            firing = run_lengths(met, int(self.points_firing[i, layer]))
            self.points_firing[i, layer] = firing[-1]
            fires = np.where(firing >= threshold.for_points, i, fires)
        normal = run_lengths(~abnormal, int(self.points_normal[layer]))
        self.points_normal[layer] = normal[-1]
        return fires, normal

    def restart(self) -> None:
        """The run continues from an earlier step: firing alerts stay until values are normal; other counts restart."""
        self.points_firing[:] = 0
        self.since[self.level == len(self.rule.thresholds)] = -1

    def _mark_onset(
        self, step: int, judged: NDArray[np.bool_], abnormal: NDArray[np.bool_], context: dict[str, float]
    ) -> None:
        silent = self.level == len(self.rule.thresholds)
        for layer in np.flatnonzero(abnormal & (self.since < 0)):
            self.since[layer] = step
            self.context[int(layer)] = dict(context)
        self.since[judged & ~abnormal & silent] = -1

    def _all(self, conditions: Sequence[Condition], gauges: dict[str, Array]) -> NDArray[np.bool_]:
        met = conditions[0].holds(gauges[conditions[0].gauge])
        for condition in conditions[1:]:
            met &= condition.holds(gauges[condition.gauge])
        return met

    def _transitions(self, judged: NDArray[np.bool_], fires: NDArray[np.int64]) -> list[Transition]:
        none = len(self.rule.thresholds)
        graver = judged & (fires < self.level)
        over = judged & (self.level < none) & (self.points_normal >= self.rule.resolve_after)
        self.level = np.where(graver, fires, np.where(over, none, self.level))
        self.since[over] = -1
        return [
            Transition(0, layer, int(self.level[layer]), int(self.since[layer]), self.context.get(layer, {}))
            for layer in np.flatnonzero(graver | over).tolist()
        ]
