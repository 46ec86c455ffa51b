"""The step-exact engine: records in, alert transitions out. The result does not depend on how records are batched."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from statistics import median

import numpy as np
from numpy.typing import NDArray

from stabwatch.alerts.catalogue import RULES, features
from stabwatch.alerts.features import Feature, PlainFeature
from stabwatch.alerts.rule import Alert, Condition, Rule
from stabwatch.alerts.run_context import RunContext
from stabwatch.alerts.statistics import Array
from stabwatch.alerts.templates import describe
from stabwatch.alerts.themes.nonfinite import NonFiniteFeature
from stabwatch.runlog import Event, RecordBatch, SeriesKey

ENGINE_EVENTS = ("start", "end", "flight", "guard", "change")
"""Kinds of events that an engine reads."""
BASELINE_FEATURES = ("loss", "gradient_norm")
"""Features whose baselines restart at an announced change."""
STALL_SECONDS = 60.0
STALL_STEPS = 20
LONGEST_PAUSE_SECONDS = 1800.0
"""Upper limit of the patience that earlier pauses (evaluations, checkpoints) cause."""


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

    def update(self, step: int, gauges: dict[str, Array], context: dict[str, float]) -> list[tuple[int, int]]:
        """Judge one record. Returns (layer, level) of each transition; level is len(thresholds) for a resolution."""
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
        met_any = np.zeros(len(self.since), dtype=bool)
        for i, level in reversed(list(enumerate(self.rule.thresholds))):
            met = judged & self._all(level.when, gauges)
            met_any |= met
            self.points_firing[i] = np.where(judged, np.where(met, self.points_firing[i] + 1, 0), self.points_firing[i])
            fires = np.where(self.points_firing[i] >= level.for_points, i, fires)
        self.points_normal = np.where(judged, np.where(met_any, 0, self.points_normal + 1), self.points_normal)
        out = self._transitions(judged, fires)
        self._quiet = bool((self.level == len(self.rule.thresholds)).all() and (self.since < 0).all())
        return out

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

    def _transitions(self, judged: NDArray[np.bool_], fires: NDArray[np.int64]) -> list[tuple[int, int]]:
        none = len(self.rule.thresholds)
        graver = judged & (fires < self.level)
        over = judged & (self.level < none) & (self.points_normal >= self.rule.resolve_after)
        self.level = np.where(graver, fires, np.where(over, none, self.level))
        self.since[over] = -1
        return [(int(layer), int(self.level[layer])) for layer in np.flatnonzero(graver | over)]


def _is_muted(rule: Rule, layer: str) -> bool:
    return any(fnmatchcase(layer, pattern) for pattern in rule.muted)


class Engine:
    """Evaluates rules over the records of one run.

    active: alerts that fire now. history: all transitions so far. memory: other facts of the run, for the diagnosis.
    """

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self.rules = {r.name: r for r in rules}
        self._features: dict[str, Feature] = {f.name: f for f in features()}
        for rule in rules:
            if rule.family.startswith("signal:"):
                self._features.setdefault(rule.family, PlainFeature(rule.family.removeprefix("signal:")))
        self._states = {r.name: RuleState(r) for r in rules if r.thresholds}
        self._judges = {
            name: [state for state in self._states.values() if state.rule.family == name] for name in self._features
        }
        self._stopped = next((r for r in rules if r.family == "run"), None)
        self._firing: dict[tuple[str, str, str], Alert] = {}
        self._history: list[Alert] = []
        self._keys: tuple[SeriesKey, ...] | None = None
        self.memory = RunContext()
        self._derived: dict[str, tuple[Feature, Array]] = {}
        self.first_step: int | None = None
        self.last_step: int | None = None
        self._changes: list[int] = []
        self._last_time = math.nan
        self._pace: deque[float] = deque(maxlen=101)
        self._pause = 0.0
        self._ended = False

    @property
    def active(self) -> tuple[Alert, ...]:
        """Alerts that fire now, in the order in which they started to fire."""
        return tuple(self._firing.values())

    @property
    def derived(self) -> dict[SeriesKey, float]:
        """The latest derived gauges. One whose latest value is not finite is absent."""
        return {
            SeriesKey(name, layer): value
            for name, (feature, kept) in self._derived.items()
            for layer, value in zip(feature.layers, kept.tolist(), strict=False)
            if math.isfinite(value)
        }

    @property
    def history(self) -> tuple[Alert, ...]:
        """All transitions so far."""
        return tuple(self._history)

    def observe(self, block: RecordBatch) -> list[Alert]:
        """Process new records. Returns the transitions that they cause."""
        if block.layout.keys is not self._keys:
            self._bind(block.layout.keys)
        values = block.values
        out: list[Alert] = []
        for i in range(len(block)):
            out += self._record(int(block.steps[i]), float(block.times[i]), values[i])
        return out

    def _bind(self, keys: tuple[SeriesKey, ...]) -> None:
        self._keys = keys
        for feature in self._features.values():
            feature.bind(keys)
        self.memory.bind(keys)

    def _record(self, step: int, time: float, values: Array) -> list[Alert]:
        before = dict(self.memory.context)
        if self.last_step is not None and step > self.last_step:
            before["step"] = float(self.last_step)
        if self.last_step is not None and step <= self.last_step:
            self._restart()
        elif self.last_step is not None:
            self._pace.append((time - self._last_time) / (step - self.last_step))
            self._pause = float(np.fmax(self._pause, time - self._last_time))
        self._cross(self.last_step, step)
        self.first_step = step if self.first_step is None else self.first_step
        self.last_step, self._last_time = step, time
        self.memory.observe(step, values)
        out = self._resume(step, time)
        for name, feature in self._features.items():
            gauges = feature.update(step, values)
            if gauges is None:
                continue
            self._keep(feature, gauges)
            for state in self._judges[name]:
                for layer, level in state.update(step, gauges, before):
                    if not _is_muted(state.rule, feature.layers[layer]):
                        out.append(self._transition(state, feature, layer, level, step, time, gauges))
        self._history += out
        return out

    def _cross(self, last: int | None, step: int) -> None:
        """Restart the baselines at the first record after an announced change."""
        before = -1 if last is None or last >= step else last
        if any(before < change <= step for change in self._changes):
            for name in BASELINE_FEATURES:
                self._features[name].restart()

    def _restart(self) -> None:
        """The run continues from an earlier step in the same folder: from a checkpoint, or from the beginning."""
        for feature in self._features.values():
            feature.restart()
        for state in self._states.values():
            state.restart()
        self.memory.restart()

    def _keep(self, feature: Feature, gauges: dict[str, Array]) -> None:
        for gauge in feature.gauges:
            now = gauges[gauge.name]
            kept = self._derived.get(gauge.name)
            if kept is None or len(kept[1]) != len(now):
                longer = np.full(len(now), np.nan)
                if kept is not None:
                    longer[: len(kept[1])] = kept[1]
                kept = self._derived[gauge.name] = (feature, longer)
            np.copyto(kept[1], now, where=~np.isnan(now))

    def _transition(
        self,
        state: RuleState,
        feature: Feature,
        layer: int,
        level: int,
        step: int,
        time: float,
        gauges: dict[str, Array],
    ) -> Alert:
        rule = state.rule
        place = feature.keys[layer] if isinstance(feature, NonFiniteFeature) else None
        signal = place.signal if place else feature.signal
        where = place.layer if place else feature.layers[layer]
        key = (rule.name, signal, where)
        if level == len(rule.thresholds):
            alert = replace(self._firing.pop(key), state="resolved", step=step, time=time)
            return alert
        chosen = rule.thresholds[level]
        numbers = {name: float(column[layer]) for name, column in gauges.items()}
        condition = chosen.when[0]
        onset = int(state.since[layer]) if state.since[layer] >= 0 else step
        earlier = {f"{name}_at_onset": value for name, value in state.context.get(layer, {}).items()}
        alert = Alert(
            rule=rule.name,
            severity=chosen.severity,
            state="firing",
            signal=signal,
            layer=where,
            step=step,
            onset=onset,
            time=time,
            value=numbers[condition.gauge],
            threshold=condition.above if condition.above is not None else condition.below,
            summary=chosen.summary or rule.summary,
            description=describe(rule, signal, where, step, numbers),
            context={**earlier, **self.memory.context, **numbers},
        )
        self._firing[key] = alert
        return alert

    def observe_event(self, event: Event) -> list[Alert]:
        """Process an event. An abnormal end fires an alert. A 'change' must come before the records it concerns."""
        self.memory.note(event)
        if event.kind == "change" and event.step is not None:
            self._changes.append(event.step)
        if event.kind == "start":
            self._ended = False  # also when the run continues from a checkpoint in the same folder
        if event.kind != "end" or self._stopped is None:
            return []
        self._ended = True
        reason = str(event.data.get("reason", "unknown"))
        out = self._resume(event.step or 0, event.time)
        if reason != "finished":
            step = event.step if event.step is not None else self.last_step or 0
            said = event.data.get("error")
            what = f"The training process ended at step {step}: {reason}" + (f" ({said})." if said else ".")
            out.append(self._fire_stop("critical", step, event.time, what))
        self._history += out
        return out

    @property
    def patience(self) -> float:
        """Time without a record from which the run counts as stalled; infinity before a second record.

        It allows for twice the longest earlier pause, up to a limit: a run may evaluate or write checkpoints regularly.
        """
        if not self._pace:
            return math.inf
        paused = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return self._last_time + max(STALL_SECONDS, STALL_STEPS * median(self._pace), paused)

    def tick(self, now: float) -> list[Alert]:
        """Check for a stall when no record arrives; `now` in seconds since the epoch."""
        if self._ended or self._stopped is None or not self._pace or ("TrainingStopped", "", "") in self._firing:
            return []
        silent = now - self._last_time
        if now <= self.patience:
            return []
        step = self.last_step or 0
        what = f"No record for {silent:.0f} s after step {step}; a step took {median(self._pace):.3g} s."
        out = [self._fire_stop("warning", step, now, what)]
        self._history += out
        return out

    def _fire_stop(self, severity: str, step: int, time: float, what: str) -> Alert:
        assert self._stopped is not None
        alert = Alert(
            self._stopped.name, severity, "firing", "", "", step, step, time, None, None, self._stopped.summary, what
        )
        self._firing[(self._stopped.name, "", "")] = alert
        return alert

    def _resume(self, step: int, time: float) -> list[Alert]:
        stalled = self._firing.pop(("TrainingStopped", "", ""), None)
        return [replace(stalled, state="resolved", step=step, time=time)] if stalled else []
