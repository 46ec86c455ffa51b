"""The step-exact engine: records in, alert transitions out. The result does not depend on how records are batched.

A few records are evaluated one by one, which defines the result; many are evaluated as blocks, with an equal result.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain, pairwise
from statistics import median

import numpy as np

from stabwatch.alerts.blocks import LEAST_RECORDS, Records, evaluate
from stabwatch.alerts.catalogue import RULES, features
from stabwatch.alerts.features import Feature, PlainFeature
from stabwatch.alerts.loss_feature import LossFeature
from stabwatch.alerts.origins import Origin
from stabwatch.alerts.role_features import may_change
from stabwatch.alerts.rule import Alert, Rule
from stabwatch.alerts.rule_state import RuleState, Transition
from stabwatch.alerts.run_context import RunContext
from stabwatch.alerts.statistics import Array, Ints
from stabwatch.alerts.templates import describe
from stabwatch.alerts.themes.nonfinite import NonFiniteFeature
from stabwatch.runlog import Event, RecordBatch, SeriesKey
from stabwatch.runlog.schema import GOOD_ENDS

ENGINE_EVENTS = ("start", "end", "flight", "guard", "change", "held_up", "nonfinite", "unstepped", "optimizer")
"""Kinds of events that an engine reads."""
BASELINE_FEATURES = ("loss", "gradient_norm", "logged_reward", "logged_accuracy")
"""Features whose baselines restart at an announced change."""
WEIGHT_FEATURE = "weight"
"""Restarts where the model has changed: new parameters in the place of others are no step of the optimizer."""
STALL_SECONDS = 60.0
STALL_STEPS = 20
PACES = 101
"""Latest records whose median pace is that of a step."""
LONGEST_PAUSE_SECONDS = 1800.0
"""Upper limit of the patience that earlier pauses (evaluations, checkpoints) cause."""


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
        self._held_up = next((r for r in rules if r.family == "held_up"), None)
        self._unstepped = next((r for r in rules if r.family == "unstepped"), None)
        self._firing: dict[tuple[str, str, str], Alert] = {}
        self._history: list[Alert] = []
        self._keys: tuple[SeriesKey, ...] | None = None
        self._live: dict[str, Feature] = {}
        """Those for which records of the present layout can change anything."""
        self.memory = RunContext()
        self._derived: dict[str, tuple[Feature, Array]] = {}
        self.first_step: int | None = None
        self.last_step: int | None = None
        self._changes: list[int] = []
        self._model_changes: list[int] = []
        self._last_time = math.nan
        self._pace: deque[float] = deque(maxlen=PACES)
        self._pause = 0.0
        self._ended = self._begun_again = False

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
    def comparable(self) -> bool:
        """Whether the losses of different steps could be compared throughout: not those of a policy, value or game."""
        loss = self._features["loss"]
        return not (isinstance(loss, LossFeature) and loss.objective.ever)

    @property
    def data_changes(self) -> tuple[int, ...]:
        """Steps at which the loss jumped together with the data, which were learned then."""
        loss = self._features["loss"]
        return tuple(loss.changes) if isinstance(loss, LossFeature) else ()

    @property
    def fresh_starts(self) -> tuple[int, ...]:
        """Steps at which training started over: new weights, and an optimizer without its state."""
        loss = self._features["loss"]
        return tuple(loss.fresh_starts) if isinstance(loss, LossFeature) else ()

    @property
    def model_changes(self) -> tuple[int, ...]:
        """Steps at which the model was seen to consist of other parameters, or of other frozen ones, than before."""
        return tuple(self._model_changes)

    @property
    def history(self) -> tuple[Alert, ...]:
        """All transitions so far."""
        return tuple(self._history)

    def observe(self, block: RecordBatch) -> list[Alert]:
        """Process new records. Returns the transitions that they cause."""
        if block.layout.keys is not self._keys:
            self._bind(block.layout.keys)
        out: list[Alert] = []
        for start, stop in pairwise(self._cuts(block.steps)):
            some = slice(start, stop)
            if stop - start >= LEAST_RECORDS:
                out += self._records(block.steps[some], block.times[some], block.values[some])
                continue
            for i in range(start, stop):
                out += self._record(int(block.steps[i]), float(block.times[i]), block.values[i])
        return out

    def _cuts(self, steps: Ints) -> list[int]:
        """Where blocks begin: a block has ascending steps, and no baseline restarts within it."""
        cuts = [0, *(np.flatnonzero(np.diff(steps) <= 0) + 1).tolist(), len(steps)]
        announced = [
            (start + np.searchsorted(steps[start:stop], self._changes)).tolist() for start, stop in pairwise(cuts)
        ]
        return sorted(set(chain(cuts, *announced)))

    def _bind(self, keys: tuple[SeriesKey, ...]) -> None:
        self._keys = keys
        for feature in self._features.values():
            feature.bind(keys)
        self._live = {name: feature for name, feature in self._features.items() if may_change(feature)}
        self.memory.bind(keys)

    def _record(self, step: int, time: float, values: Array) -> list[Alert]:
        before = self._before(step)
        self._begin(step, time)
        self.last_step, self._last_time = step, time
        self.memory.observe(step, values)
        out = self._resume(step, time)
        for name, feature in self._live.items():
            gauges = feature.update(step, values)
            if gauges is None:
                continue
            self._keep(feature, {gauge.name: gauges[gauge.name] for gauge in feature.gauges})
            for state in self._judges[name]:
                for change in state.update(step, gauges, before):
                    if not _is_muted(state.rule, feature.layers[change.layer]):
                        numbers = {name: float(column[change.layer]) for name, column in gauges.items()}
                        out.append(self._transition(state, feature, change, step, time, numbers, self.memory.context))
        self._history += out
        return out

    def _records(self, steps: Ints, times: Array, values: Array) -> list[Alert]:
        """The same for several records with ascending steps, of which only the first restarts anything."""
        first, before = int(steps[0]), self._before(int(steps[0]))
        self._begin(first, float(times[0]))
        out = self._resume(first, float(times[0]))
        self._pace.extend((np.diff(times) / np.diff(steps))[-PACES:].tolist())
        self._pause = float(np.fmax.reduce(np.diff(times), initial=self._pause))
        self.last_step, self._last_time = int(steps[-1]), float(times[-1])
        after = self.memory.observe_many(steps, values)

        def context(record: int) -> dict[str, float]:
            return after(record - 1) | {"step": float(steps[record - 1])} if record else before

        found: list[tuple[int, RuleState, Feature, Transition, dict[str, float]]] = []
        appeared: dict[str, int] = {}
        records = Records(steps, values)
        for name, feature in self._live.items():
            for rows, gauges in evaluate(feature, records):
                appeared |= {g.name: int(rows[0]) for g in feature.gauges if g.name not in self._derived}
                self._keep(feature, {gauge.name: gauges.last(gauge.name) for gauge in feature.gauges})
                for state in self._judges[name]:
                    for change in state.update_many(rows, steps, gauges, context):
                        if not _is_muted(state.rule, feature.layers[change.layer]):
                            numbers = gauges.at(int(np.searchsorted(rows, change.record)), change.layer)
                            found.append((change.record, state, feature, change, numbers))
        for gauge_name in sorted(appeared, key=appeared.__getitem__):
            self._derived[gauge_name] = self._derived.pop(gauge_name)
        for record, state, feature, change, numbers in sorted(found, key=lambda f: f[0]):
            step, time = int(steps[record]), float(times[record])
            out.append(self._transition(state, feature, change, step, time, numbers, after(record)))
        self._history += out
        return out

    def _before(self, step: int) -> dict[str, float]:
        """Numbers of the run before a record."""
        before = dict(self.memory.context)
        if self.last_step is not None and step > self.last_step:
            before["step"] = float(self.last_step)
        return before

    def _begin(self, step: int, time: float) -> None:
        """What a record means for the clock and the baselines, before it is looked at."""
        if self.last_step is not None and step <= self.last_step:
            self._restart()
        elif self.last_step is not None:
            self._pace.append((time - self._last_time) / (step - self.last_step))
            self._pause = float(np.fmax(self._pause, time - self._last_time))
        self._cross(self.last_step, step)
        self.first_step = step if self.first_step is None else self.first_step

    def _cross(self, last: int | None, step: int) -> None:
        """Restart the baselines at the first record after an announced change."""
        before = -1 if last is None or last >= step else last
        if any(before < change <= step for change in self._changes):
            for name in BASELINE_FEATURES:
                self._features[name].restart()
        if any(before < change <= step for change in self._model_changes):
            self._features[WEIGHT_FEATURE].restart()

    def _restart(self) -> None:
        """The run continues from an earlier step in the same folder: from a checkpoint, or from the beginning."""
        for feature in self._features.values():
            feature.restart()
        for state in self._states.values():
            state.restart()
        self.memory.restart()

    def _keep(self, feature: Feature, gauges: Mapping[str, Array]) -> None:
        for name, now in gauges.items():
            kept = self._derived.get(name)
            if kept is None or len(kept[1]) != len(now):
                longer = np.full(len(now), np.nan)
                if kept is not None:
                    longer[: len(kept[1])] = kept[1]
                kept = self._derived[name] = (feature, longer)
            np.copyto(kept[1], now, where=~np.isnan(now))

    def _transition(
        self,
        state: RuleState,
        feature: Feature,
        change: Transition,
        step: int,
        time: float,
        numbers: dict[str, float],
        context: dict[str, float],
    ) -> Alert:
        rule = state.rule
        place = feature.keys[change.layer] if isinstance(feature, NonFiniteFeature) else None
        signal = place.signal if place else feature.signal
        where = place.layer if place else feature.layers[change.layer]
        key = (rule.name, signal, where)
        if change.level == len(rule.thresholds):
            alert = replace(self._firing.pop(key), state="resolved", step=step, time=time)
            return alert
        chosen = rule.thresholds[change.level]
        condition = chosen.when[0]
        first = change.onset if change.onset >= 0 else step
        onset = _began(rule, first, numbers)
        known = change.context if onset == first else {}  # those numbers are of a later step
        earlier = {f"{name}_at_onset": value for name, value in known.items()}
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
            context={**earlier, **context, **numbers},
        )
        self._firing[key] = alert
        return alert

    def observe_event(self, event: Event) -> list[Alert]:
        """Process an event. An abnormal end fires an alert. A 'change' must come before the records it concerns."""
        self.memory.note(event)
        if event.kind == "change" and event.step is not None:
            self._changes.append(event.step)
            if event.data.get("seen"):
                self._model_changes.append(event.step)
        if event.kind == "nonfinite":
            return self._traced(Origin.of(event), event.time)
        if event.kind == "start":
            self._begun_again = True
            self._ended = False  # also when the run continues from a checkpoint in the same folder
        if event.kind == "held_up":
            return self._note_held_up(event)
        if event.kind == "unstepped" and self._unstepped is not None:
            what = str(event.data.get("what", ""))
            self._history.append(
                alert := self._fire_run(self._unstepped, "critical", event.step or 0, event.time, what)
            )
            return [alert]
        if event.kind != "end" or self._stopped is None:
            return []
        self._ended = True
        reason = str(event.data.get("reason", "unknown"))
        out = self._over(self._stopped, event.step or 0, event.time)
        if reason not in GOOD_ENDS:
            step = event.step if event.step is not None else self.last_step or 0
            said = event.data.get("error") or event.data.get("detail")
            what = f"The training process ended at step {step}: {reason}" + (f" ({said})." if said else ".")
            out.append(self._fire_run(self._stopped, "critical", step, event.time, what))
        self._history += out
        return out

    def _traced(self, origin: Origin, time: float) -> list[Alert]:
        """A value that is not finite was traced to where it was made, in a step that need not be recorded."""
        out = []
        for feature in (f for f in self._features.values() if isinstance(f, NonFiniteFeature)):
            known = SeriesKey(origin.signal, origin.layer)
            own = known in feature.keys or origin.place == "buffer"
            gauges = feature.note(known if own else SeriesKey("loss_nonfinite_total"))
            for state in self._judges[feature.name]:
                for change in state.update(origin.step, gauges, dict(self.memory.context)):
                    if not _is_muted(state.rule, feature.layers[change.layer]):
                        numbers = {name: float(column[change.layer]) for name, column in gauges.items()}
                        alert = self._transition(
                            state, feature, change, origin.step, time, numbers, self.memory.context
                        )
                        said = replace(alert, description=origin.summary)
                        self._firing[said.rule, said.signal, said.layer] = said
                        out.append(said)
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
        out = [self._fire_run(self._stopped, "warning", step, now, what)]
        self._history += out
        return out

    def _note_held_up(self, event: Event) -> list[Alert]:
        rule, step = self._held_up, event.step or 0
        if rule is None or (rule.name, "", "") in self._firing or step < (self.last_step or 0):
            return []
        severity, what = str(event.data.get("severity", "warning")), str(event.data.get("what", ""))
        self._begun_again = False
        self._history.append(alert := self._fire_run(rule, severity, step, event.time, what))
        return [alert]

    def _fire_run(self, rule: Rule, severity: str, step: int, time: float, what: str) -> Alert:
        alert = Alert(rule.name, severity, "firing", "", "", step, step, time, None, None, rule.summary, what)
        self._firing[(rule.name, "", "")] = alert
        return alert

    def _resume(self, step: int, time: float) -> list[Alert]:
        """A record: the run goes on."""
        held = self._firing.get(("RankHoldsUp", "", ""))
        goes_on = held is not None and (step >= held.step or self._begun_again)
        return self._over(self._stopped, step, time) + (self._over(self._held_up, step, time) if goes_on else [])

    def _over(self, rule: Rule | None, step: int, time: float) -> list[Alert]:
        alert = self._firing.pop((rule.name, "", ""), None) if rule is not None else None
        return [replace(alert, state="resolved", step=step, time=time)] if alert else []


def _began(rule: Rule, onset: int, numbers: dict[str, float]) -> int:
    """The step at which it began, of which the first point outside the normal range has told later."""
    before = numbers.get(rule.began, 0.0)
    return max(0, onset - int(before)) if math.isfinite(before) else onset
