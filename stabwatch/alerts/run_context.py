"""Facts of a run that the engine keeps for the diagnosis, in addition to its alerts."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabwatch.alerts.origins import Origin
from stabwatch.alerts.statistics import Array, Ints, median, row_medians
from stabwatch.alerts.templates import format_guard
from stabwatch.alerts.update_feature import SEARCHES
from stabwatch.runlog import Event, SeriesKey

_CONTEXT = (
    "loss", "gradient_norm", "gradient_norm_before_clip", "learning_rate", "loss_scale",
    "rank_nonfinite_max", "rank_nonfinite_worst", "input_rms", "input_spread_ratio", "input_alike_ratio",
    "clip_limit", "token_loss", "closure_passes",
)  # fmt: skip
_HIGHER = 1.2
"""A new peak of the update ratio is kept if it is higher by this factor, so that few are kept."""
HABITS = {
    "batch_repeated": " Nearly all steps were given the batch of the step before.",
    "weights_written": " The program writes into the weights between nearly all steps.",
}
"""What a loop may do on purpose, and by mistake: told where nothing is wrong that a rule knows."""
_FEWEST_TOLD = 64
"""Steps of which that is known from which on it is told."""
_NEARLY_ALL = 0.95
_ONE = 1.001
"""Stable rank below which a matrix is of rank one, but for rounding."""
_JUMP = 2.0
_JUMP_BACK = 10.0
"""Ratio to the point before from which a rate has jumped although the run has known a higher one: a restart."""
_WARM = 8
RECURRENT = "weight_hh"
"""Name of the recurrent matrices of `torch.nn.RNN`, `LSTM`, `GRU` and their cells."""
_RISE = 32
"""Points over which a rise of the learning rate is judged."""


@dataclass(frozen=True)
class UpdatePeak:
    """A step whose updates were the largest so far.

    ratio: median over layers of update over weight. A single layer that started at zero does not affect it.
    layer, largest: the layer with the largest ratio at that step, and that ratio.
    """

    step: int
    ratio: float
    layer: str
    largest: float


@dataclass(frozen=True)
class RateJump:
    """A step at which the learning rate was more than twice that of any point before, or ten times the point before.

    Points before the run last went back to an earlier step count only for the first points after that.
    """

    step: int
    before: float
    after: float


class RunContext:
    """Facts of a run, updated with each record.

    context: the latest finite values of run-scope signals. update_peaks: the largest last. largest_activation: over all
    layers, in the last record with only finite activations; NaN before there is one. batches: for each step to which an
    alert is traced, the known batches of that step and of the steps since the record before it. guarded: actions of
    guards, as (step, description); announced: changes, as (step, sentence). origins: where values that are not finite
    were made. recurrent: first and last largest singular value of each recurrent weight matrix. recurrent_layers: the
    modules that have one. first_gradient: the first gradient norm, before clipping, NaN before there is one.
    smallest_input: least root mean square of the model's input so far. searches: the optimizer goes on in a step until
    it has found a low loss. nonfinite_ranks: for each step at which non-finite values began, the rank that counted the
    most, -1 where that is not known.
    """

    def __init__(self) -> None:
        self.context: dict[str, float] = {}
        self.update_peaks: list[UpdatePeak] = []
        self.rate_jumps: list[RateJump] = []
        self.rate_at: tuple[int, float] = (0, math.nan)
        """Step and value of the first learning rate above zero."""
        self.largest_rate = 0.0
        self.first_step: int | None = None
        self._largest_earlier = math.inf
        self._last_rates: deque[float] = deque(maxlen=_RISE)
        self.largest_activation = math.nan
        self.first_gradient = math.nan
        self.smallest_input = math.inf
        self.searches = False
        self.recurrent_layers: frozenset[str] = frozenset()
        self.layer_order: dict[str, int] = {}
        self.batches: dict[int, list[dict[str, Any]]] = {}
        self.guarded: list[tuple[int, str]] = []
        self.announced: list[tuple[int, str]] = []
        self.optimizers: list[dict[str, Any]] = []
        """Settings of each optimizer at its first step, see `run_metadata.optimizer_facts`."""
        self.origins: list[Origin] = []
        self.recurrent: dict[str, tuple[float, float]] = {}
        self.nonfinite_ranks: dict[int, int] = {}
        self._nonfinite = False
        self._update_steps: list[tuple[int, int]] = []
        """First and last step of each stretch in which the size of every update is known."""
        self._rates = 0
        self._keys: tuple[SeriesKey, ...] = ()
        self._context_columns: dict[str, int] = {}
        self._bad_loss: int | None = None
        self._updates = self._peaks = self._bad = self._recurrent = self._norms = np.empty(0, dtype=np.int64)
        self._stable = self._norms
        self._has_gradient: dict[str, bool] = {}
        self._rank_one: dict[str, bool] = {}
        self._told: dict[str, NDArray[np.int64]] = {name: np.zeros(2, dtype=np.int64) for name in HABITS}
        self._told_columns: list[tuple[str, int]] = []

    def is_habit(self, signal: str) -> bool:
        """Was one of `HABITS` so in nearly all steps of which it is known? Of few it is not said."""
        so, known = self._told[signal].tolist()
        return known >= _FEWEST_TOLD and so >= _NEARLY_ALL * known

    def _note_told(self, values: Array) -> None:
        """Count what was so in records (n, series)."""
        for name, column in self._told_columns:
            found = values[:, column]
            self._told[name] += (int((found > 0).sum()), int((found >= 0).sum()))

    def layers_of(self, rule: str) -> tuple[str, ...]:
        """The layers that a rule is about which speaks of the whole run, where they are known."""
        return {"ZeroGradients": self.without_gradient, "UnitsAlike": self.of_rank_one}.get(rule, ())

    @property
    def of_rank_one(self) -> tuple[str, ...]:
        """Layers that have a weight whose rows all have one direction, each time it was measured, in forward order."""
        found = {name.rpartition(".")[0] for name, all_alike in self._rank_one.items() if all_alike}
        return tuple(sorted(found, key=lambda layer: self.layer_order.get(layer, len(self.layer_order))))

    @property
    def without_gradient(self) -> tuple[str, ...]:
        """Layers whose gradient was measured and has been exactly zero each time, in the order of the log."""
        return tuple(layer for layer, has in self._has_gradient.items() if not has)

    def _note_gradients(self, values: Array) -> None:
        """Note which layers have a gradient in records (n, series)."""
        norms = values[:, self._norms]
        most = np.fmax.reduce(norms, axis=0, initial=-math.inf)
        for column, norm in zip(self._norms.tolist(), most.tolist(), strict=True):
            if norm >= 0:
                layer = self._keys[column].layer
                self._has_gradient[layer] = norm > 0 or self._has_gradient.get(layer, False)

    def _note_stable_ranks(self, values: Array) -> None:
        """Note which weights are of rank one in records (n, series)."""
        most = np.fmax.reduce(values[:, self._stable], axis=0, initial=-math.inf)
        for column, rank in zip(self._stable.tolist(), most.tolist(), strict=True):
            if rank > 0:
                name = self._keys[column].layer
                self._rank_one[name] = rank < _ONE and self._rank_one.get(name, True)

    def last_update_before(self, step: int) -> int | None:
        """The last step before `step` of which the size of the update is known; None for none."""
        stretches = self._update_steps
        at = bisect_left(stretches, step, key=lambda ends: ends[0]) - 1
        return min(stretches[at][1], step - 1) if at >= 0 else None

    def _note_update(self, step: int) -> None:
        if self._update_steps and step == self._update_steps[-1][1] + 1:
            self._update_steps[-1] = (self._update_steps[-1][0], step)
        else:
            self._update_steps.append((step, step))

    def bind(self, keys: tuple[SeriesKey, ...]) -> None:
        """Find the columns of a record layout."""
        self._keys = keys
        self._context_columns = {k.signal: i for i, k in enumerate(keys) if k.signal in _CONTEXT and not k.layer}
        self._bad_loss = next((i for i, k in enumerate(keys) if k.signal == "loss_nonfinite_total"), None)
        self._updates = _columns(keys, "update_to_weight_ratio")
        self._peaks = _columns(keys, "activation_abs_max")
        self._bad = _columns(keys, "activation_nonfinite_total")
        self._norms = _columns(keys, "layer_gradient_norm")
        self._stable = _columns(keys, "stable_rank")
        self._told_columns = [(k.signal, i) for i, k in enumerate(keys) if k.signal in HABITS and not k.layer]
        spectra = _columns(keys, "singular_value_max")
        recurrent = [c for c in spectra.tolist() if RECURRENT in keys[c].layer]
        self.recurrent_layers = frozenset(keys[c].layer.rpartition(".")[0] for c in recurrent)
        self._recurrent = np.array(recurrent, dtype=np.int64)
        self.layer_order = {keys[c].layer: i for i, c in enumerate(self._peaks.tolist())}

    def restart(self) -> None:
        """The run continues from an earlier step."""
        self.update_peaks.clear()
        self._update_steps.clear()
        self._last_rates.clear()
        self._largest_earlier, self.largest_rate = self.largest_rate or math.inf, 0.0
        self.recurrent.clear()
        self._has_gradient.clear()
        self._rank_one.clear()
        self._rates, self.rate_at = 0, (0, math.nan)

    def note(self, event: Event) -> None:
        """Process an event: of the flight recorder, of a guard, of an optimizer, or an announced change."""
        if event.kind == "flight":
            onset, entries = event.data.get("onset"), event.data.get("batches")
            known = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
            if isinstance(onset, int):
                since = event.data.get("since")
                steps = range(since if isinstance(since, int) else onset, onset + 1)
                kept = self.batches.setdefault(onset, [])
                kept += [e for e in known if e.get("step") in steps and e not in kept]
        elif event.kind == "nonfinite":
            self.origins.append(Origin.of(event))
        elif event.kind == "guard":
            self.guarded.append((event.step or 0, format_guard(event.data)))
        elif event.kind == "change":
            step, what = event.step or 0, str(event.data.get("what", ""))
            when = f"At step {step}" if event.data.get("seen") else f"A change was announced at step {step}:"
            self.announced.append((step, f"{when} {what}."))
        elif event.kind == "optimizer":
            self.optimizers.append(event.data)

    def observe(self, step: int, values: Array) -> None:
        """Process one record."""
        self.first_step = step if self.first_step is None else self.first_step
        self._first_gradient(values[None])
        self._inputs(values[None])
        self._note_gradients(values[None])
        self._note_stable_ranks(values[None])
        self._note_told(values[None])
        self._learning_rate(step, values)
        self._note_ranks(np.array([step]), values[None])
        for name, column in self._context_columns.items():
            if not math.isnan(values[column]):
                self.context[name] = float(values[column])
                if name == "loss":
                    self.context["loss_step"] = float(step)
        if self._bad_loss is not None and values[self._bad_loss] > 0:
            self.context["loss_nonfinite_step"] = float(step)
        self._update_peak(step, values)
        for column in self._recurrent.tolist():
            if math.isfinite(now := float(values[column])):
                layer = self._keys[column].layer
                self.recurrent[layer] = (self.recurrent.get(layer, (now,))[0], now)
        peaks = values[self._peaks]
        if not (values[self._bad] > 0).any() and np.isfinite(peaks).any():
            self.largest_activation = float(np.nanmax(peaks))

    def observe_many(self, steps: Ints, values: Array) -> Callable[[int], dict[str, float]]:
        """Process records. The result gives `context` as it was after one of them; -1 for before all."""
        self.first_step = int(steps[0]) if self.first_step is None else self.first_step
        self._first_gradient(values)
        self._inputs(values)
        self._note_gradients(values)
        self._note_stable_ranks(values)
        self._note_told(values)
        start, followed = dict(self.context), self._learning_rates(steps, values)
        self._note_ranks(steps, values)
        for name, column in self._context_columns.items():
            rows = np.flatnonzero(~np.isnan(values[:, column]))
            followed[name] = (rows, values[rows, column])
            if name == "loss":
                followed["loss_step"] = (rows, steps[rows].astype(np.float64))
        if self._bad_loss is not None:
            bad = np.flatnonzero(values[:, self._bad_loss] > 0)
            followed["loss_nonfinite_step"] = (bad, steps[bad].astype(np.float64))

        def after(record: int) -> dict[str, float]:
            numbers = {name: int(np.searchsorted(rows, record, "right")) for name, (rows, _) in followed.items()}
            new = [name for name, number in numbers.items() if number and name not in start]
            known = dict.fromkeys([*start, *sorted(new, key=lambda name: followed[name][0][0])])
            return {
                name: float(followed[name][1][n - 1]) if (n := numbers.get(name)) else start[name] for name in known
            }

        self.context.update(after(len(steps) - 1))
        self._update_peaks(steps, values[:, self._updates])
        self._recurrent_values(values)
        peaks = values[:, self._peaks]
        whole = np.flatnonzero(~(values[:, self._bad] > 0).any(axis=1) & np.isfinite(peaks).any(axis=1))
        if len(whole):
            self.largest_activation = float(np.nanmax(peaks[whole[-1]]))
        return after

    def _first_gradient(self, values: Array) -> None:
        """Note the first gradient norm in records (n, series)."""
        if not math.isnan(self.first_gradient):
            return
        first = np.full(len(values), math.nan)
        for name in ("gradient_norm", "gradient_norm_before_clip"):  # where a record has both, the second counts
            column = self._context_columns.get(name)
            if column is not None:
                now = values[:, column]
                first = np.where(np.isfinite(now) & (now > 0), now, first)
        known = first[~np.isnan(first)]
        if len(known):
            self.first_gradient = float(known[0])

    def _inputs(self, values: Array) -> None:
        """Note the smallest input in records (n, series), and whether the optimizer searches."""
        column = self._context_columns.get("input_rms")
        if column is not None:
            sizes = values[:, column]
            self.smallest_input = float(np.min(sizes[sizes > 0], initial=self.smallest_input))
        column = self._context_columns.get("closure_passes")
        if column is not None:
            self.searches = self.searches or bool((values[:, column] >= SEARCHES).any())

    def _note_ranks(self, steps: Ints, values: Array) -> None:
        """Note on which rank non-finite values began."""
        columns = [self._context_columns.get(f"rank_nonfinite_{what}") for what in ("max", "worst")]
        if columns[0] is None or columns[1] is None:
            return
        largest, ranks = values[:, columns[0]], values[:, columns[1]]
        known = np.flatnonzero(np.isfinite(largest) & np.isfinite(ranks))
        bad = np.append(self._nonfinite, largest[known] > 0)
        for i in known[bad[1:] & ~bad[:-1]].tolist():
            self.nonfinite_ranks[int(steps[i])] = int(ranks[i])
        self._nonfinite = bool(bad[-1])

    def _learning_rates(self, steps: Ints, values: Array) -> dict[str, tuple[Ints, Array]]:
        """See `_learning_rate`. Returns records and values of what it adds to the context."""
        column = self._context_columns.get("learning_rate")
        if column is None:
            return {}
        known = np.flatnonzero(~np.isnan(values[:, column]))
        now = values[known, column]
        before = np.append(self.context.get("learning_rate", math.nan), now[:-1])
        rows, before, now = known[now > 0], before[now > 0], now[now > 0]
        if not len(rows):
            return {}
        largest = np.maximum.accumulate(np.append(self.largest_rate, now))
        warm = self._rates + np.arange(len(now)) >= _WARM
        earlier = np.where(warm, largest[:-1], self._largest_earlier)
        back = warm & (before > 0) & (now > _JUMP_BACK * before)
        for i in np.flatnonzero((now > _JUMP * np.maximum(before, earlier)) | back).tolist():
            self.rate_jumps.append(RateJump(int(steps[rows[i]]), float(before[i]), float(now[i])))
        if math.isnan(self.rate_at[1]):
            self.rate_at = (int(steps[rows[0]]), float(now[0]))
        last = np.append(np.array(self._last_rates), now)
        oldest = last[np.maximum(np.arange(len(last) - len(now), len(last)) + 1 - _RISE, 0)]
        self.largest_rate, self._rates = float(largest[-1]), self._rates + len(now)
        self._last_rates.extend(now[-_RISE:].tolist())
        return {"learning_rate_largest": (rows, largest[1:]), "learning_rate_earlier": (rows, oldest)}

    def _update_peaks(self, steps: Ints, ratios: Array) -> None:
        """See `_update_peak`. ratios: (n, layers)."""
        for row in np.flatnonzero(np.isfinite(ratios).any(axis=1)).tolist():
            self._note_update(int(steps[row]))
        typical = row_medians(ratios)
        peak = self.update_peaks[-1].ratio if self.update_peaks else 0.0
        for i in np.flatnonzero(typical > _HIGHER * peak).tolist():
            if typical[i] > _HIGHER * peak:
                peak = float(typical[i])
                largest = int(np.argmax(np.where(np.isfinite(ratios[i]), ratios[i], -math.inf)))
                layer = self._keys[self._updates[largest]].layer
                self.update_peaks.append(UpdatePeak(int(steps[i]), peak, layer, float(ratios[i, largest])))

    def _recurrent_values(self, values: Array) -> None:
        found = [(np.flatnonzero(np.isfinite(values[:, column])), column) for column in self._recurrent.tolist()]
        for rows, column in sorted((f for f in found if len(f[0])), key=lambda f: int(f[0][0])):
            first, last = float(values[rows[0], column]), float(values[rows[-1], column])
            layer = self._keys[column].layer
            self.recurrent[layer] = (self.recurrent.get(layer, (first,))[0], last)

    def _learning_rate(self, step: int, values: Array) -> None:
        column = self._context_columns.get("learning_rate")
        now = values[column] if column is not None else math.nan
        if not now > 0:
            return
        before = self.context.get("learning_rate", math.nan)
        largest = self.largest_rate if self._rates >= _WARM else self._largest_earlier
        back = self._rates >= _WARM and 0 < _JUMP_BACK * before < now
        if now > _JUMP * max(before, largest) or back:
            self.rate_jumps.append(RateJump(step, before, float(now)))
        if math.isnan(self.rate_at[1]):
            self.rate_at = (step, float(now))
        self.largest_rate = max(self.largest_rate, float(now))
        self._last_rates.append(float(now))
        self.context |= {"learning_rate_largest": self.largest_rate, "learning_rate_earlier": self._last_rates[0]}
        self._rates += 1

    def _update_peak(self, step: int, values: Array) -> None:
        ratios = values[self._updates]
        measured = np.flatnonzero(np.isfinite(ratios))
        if not len(measured):
            return
        self._note_update(step)
        typical = median(ratios[measured])
        if typical > _HIGHER * (self.update_peaks[-1].ratio if self.update_peaks else 0.0):
            largest = measured[np.argmax(ratios[measured])]
            layer = self._keys[self._updates[largest]].layer
            self.update_peaks.append(UpdatePeak(step, typical, layer, float(ratios[largest])))


def _columns(keys: Sequence[SeriesKey], signal: str) -> NDArray[np.int64]:
    return np.array([i for i, k in enumerate(keys) if k.signal == signal], dtype=np.int64)
