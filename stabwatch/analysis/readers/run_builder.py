"""Builds a run from records: columns, without copies, with roles."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.log import Column, LogRun, Remark, Role, StepUnit
from stabwatch.analysis.readers.names import (
    EPOCH_KEYS,
    is_error,
    is_eval,
    is_model_loss,
    is_perplexity,
    loss_rank,
    plain,
    role_of,
)
from stabwatch.analysis.readers.salience import salient

Floats = NDArray[np.float64]
MOST_COLUMNS = 4096
"""Most keys of a training log; further ones are left out, with a note."""
MOST_POINTS = 2_000_000
"""Most points of all columns together. Above it, records without unusual values are thinned to one in 2, 4, 8 ..."""
_OF_POINTS = ("steps", "values", "lines")
_RARE = 16
"""A column with fewer points than this share of the records is not thinned."""


@dataclass
class _Series:
    trains: bool
    """Whether its values make a record a training record."""
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    lines: array[int] = field(default_factory=lambda: array("q"))


class RunBuilder:
    """Takes records in the order of the file. A repeated key of the same step is a copy and is left out."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._series: dict[str, _Series] = {}
        self._steps, self._lines, self._times = array("q"), array("q"), array("d")
        self._ordinals = array("q")
        self._count, self._stride, self._check = 0, 1, MOST_POINTS // 64
        self._now: set[str] = set()
        self._last: int | None = None
        self._training = False
        self.remarks: list[Remark] = []
        self.unit: StepUnit = "step"
        self.taken_for_loss = ""
        """A key that is the loss although its name does not say so."""
        self.left_out = 0

    def __len__(self) -> int:
        """Number of training records so far, kept or not."""
        return self._count

    @property
    def keys(self) -> set[str]:
        """The keys of all records."""
        return set(self._series)

    @property
    def last_step(self) -> int | None:
        """Step of the newest record."""
        return self._last

    @property
    def first_steps(self) -> list[int]:
        """Steps of the first three training records, or of fewer."""
        return self._steps[:3].tolist()

    @property
    def first_line(self) -> int:
        """Line of the first training record; -1 without one."""
        return self._lines[0] if self._lines else -1

    def add_first(self, step: int, line: int, values: Mapping[str, float]) -> None:
        """Add a record before all others. Its keys are those of other records."""
        for key, value in values.items():
            series = self._series[key]
            series.steps.insert(0, step)
            series.values.insert(0, value)
            series.lines.insert(0, line)
        self._steps.insert(0, step)
        self._lines.insert(0, line)
        self._times.insert(0, math.nan)
        self._ordinals.insert(0, 0)
        self._count += 1

    def turns_nan(self, values: Mapping[str, float]) -> bool:
        """Whether one of these values is not finite where the newest value of its key is."""
        known = ((value, self._series[key].values) for key, value in values.items() if key in self._series)
        return any(
            not math.isfinite(value) and len(before) > 0 and math.isfinite(before[-1]) for value, before in known
        )

    def last_step_was(self, step: int) -> None:
        """Correct the step of the newest record."""
        for array_of_steps in (self._steps, *(series.steps for series in self._series.values())):
            if array_of_steps and array_of_steps[-1] == self._last:
                array_of_steps[-1] = step
        self._last = step

    def renumber(self, steps: Mapping[int, int]) -> bool:
        """Give all records other steps, if each has one; what follows the last is the next. Returns whether it did."""
        last = max(steps)
        after = {step: steps[last] + 1 for series in self._series.values() for step in series.steps[-1:] if step > last}
        steps = {**steps, **after} if not any(step > last for step in self._steps) else steps
        places = (self._steps, *(series.steps for series in self._series.values()))
        if not all(step in steps for place in places for step in place):
            return False
        for place in places:
            place[:] = array("q", [steps[step] for step in place])
        self._last = None if self._last is None else steps.get(self._last)
        self.remarks = [replace(r, step=None if r.step is None else steps.get(r.step)) for r in self.remarks]
        return True

    def add(
        self,
        step: int,
        line: int,
        values: Mapping[str, float],
        time: float = math.nan,
        row: bool = False,
        new: bool = False,
    ) -> None:
        """Add one record, or more keys of the newest one.

        row: it always counts as a training record. new: it is another record although its step is the same.
        """
        if new or step != self._last:
            self._last, self._training = step, False
            self._now.clear()
        training, now = row, self._now
        for key, value in values.items():
            if key in now:
                continue
            series = self._series.get(key) or self._new(key)
            if series is None:
                self.left_out += 1
                continue
            now.add(key)
            series.steps.append(step)
            series.values.append(value)
            series.lines.append(line)
            training = training or series.trains
        if training and not self._training:
            self._steps.append(step)
            self._lines.append(line)
            self._times.append(time)
            self._ordinals.append(self._count)
            self._count += 1
            self._training = True
            if len(self._steps) >= self._check:
                self._thin()

    def extend(
        self,
        steps: NDArray[np.int64],
        lines: NDArray[np.int64],
        columns: Mapping[str, Floats],
        times: Floats | None = None,
    ) -> None:
        """Add many records at once, each with all columns. Their steps rise from above the newest record's."""
        training = False
        for key, values in columns.items():
            series = self._series.get(key) or self._new(key)
            if series is None:
                self.left_out += len(values)
                continue
            series.steps.frombytes(steps.tobytes())
            series.values.frombytes(values.tobytes())
            series.lines.frombytes(lines.tobytes())
            training = training or series.trains
        if training:
            self._steps.frombytes(steps.tobytes())
            self._lines.frombytes(lines.tobytes())
            self._times.frombytes((np.full(len(steps), math.nan) if times is None else times).tobytes())
            self._ordinals.frombytes(np.arange(self._count, self._count + len(steps), dtype=np.int64).tobytes())
            self._count += len(steps)
        self._last, self._training, self._now = int(steps[-1]), training, set(columns)
        if len(self._steps) >= self._check:
            self._thin()

    def _thin(self) -> None:
        """Above the limit of points, keep every other record so far, and those with unusual values."""
        lines = _as(self._lines, np.int64)
        if self._points() > MOST_POINTS and lines[0] >= 0 and (np.diff(lines) >= 0).all():
            self._stride *= 2
            self._keep(lines)
        points, records = max(self._points(), 1), len(self._steps)
        self._check = records + max((MOST_POINTS - points) * records // points, MOST_POINTS // 64)

    def _points(self) -> int:
        return sum(len(series.values) for series in self._series.values())

    def _keep(self, lines: NDArray[np.int64]) -> None:
        roles = assign_roles({key: len(series.values) for key, series in self._series.items()})
        dense = [(key, s) for key, s in self._series.items() if len(s.values) * _RARE > len(lines)]
        at = [np.maximum(np.searchsorted(lines, _as(s.lines, np.int64), "right") - 1, 0) for _, s in dense]
        columns = [(roles[key], of, _as(s.values, np.float64)) for (key, s), of in zip(dense, at, strict=True)]
        keep = salient(_as(self._steps, np.int64), columns) | (_as(self._ordinals, np.int64) % self._stride == 0)
        for (_, s), of in zip(dense, at, strict=True):
            s.steps, s.values, s.lines = (_picked(a, keep[of]) for a in (s.steps, s.values, s.lines))
        mine = (self._steps, self._lines, self._times, self._ordinals)
        self._steps, self._lines, self._times, self._ordinals = (_picked(a, keep) for a in mine)

    def notes(self) -> list[str]:
        """Notes on what was left out, in words."""
        said = []
        if self._stride > 1:
            calm = f"of those without unusual values, one in {self._stride} is kept"
            said.append(f"There are {self._count:,} records; {calm}.")
        if self.left_out:
            said.append("The log has too many keys: the later ones are left out.")
        return said

    def _new(self, key: str) -> _Series | None:
        if len(self._series) >= MOST_COLUMNS:
            return None
        role = role_of(key)
        alone = role == "other" and not is_eval(key) and (len(self._series) < 2 or is_perplexity(key))
        alone = alone and plain(key) not in EPOCH_KEYS
        series = self._series[key] = _Series(trains=alone or role not in ("eval_loss", "other"))
        return series

    def remark(self, kind: str, line: int, text: str, value: float = math.nan, step: int | None = None) -> None:
        """Add a remark: a relevant line that is not a record. step: the line's own, else that of the record before."""
        if len(self.remarks) < 100_000:
            at = self._last if step is None else step
            self.remarks.append(Remark(kind, at, line, text[:300], value, stepped=step is not None))

    def run(self, name: str | None = None) -> LogRun:
        """The run of all records that were added."""
        roles = assign_roles({key: len(series.values) for key, series in self._series.items()})
        if "learn" in roles:
            roles |= self._of_catboost()
        if self.taken_for_loss and "loss" not in roles.values():
            roles[self.taken_for_loss] = "loss"
        columns = []
        for key, series in self._series.items():
            arrays = (np.frombuffer(a, dtype=t).copy() for a, t in
                      ((series.steps, np.int64), (series.values, np.float64), (series.lines, np.int64)))  # fmt: skip
            columns.append(Column(key, roles[key], *arrays))
        found = LogRun(
            name=self.name if name is None else name,
            columns=tuple(columns),
            steps=np.frombuffer(self._steps, dtype=np.int64).copy(),
            lines=np.frombuffer(self._lines, dtype=np.int64).copy(),
            times=np.frombuffer(self._times, dtype=np.float64).copy(),
            step_unit=self.unit,
            remarks=tuple(self.remarks),
        )
        return _without_settings(found)

    def _of_catboost(self) -> dict[str, Role]:
        """Roles of its `learn` and `test`, which are a loss or a score as its user chose: a loss falls, or is NaN."""
        values = np.array(self._series["learn"].values)
        falls = not np.isfinite(values).all() or values[-1] < values[0]
        if {"test", "best"} <= self._series.keys():
            tests, best = (np.array(self._series[key].values) for key in ("test", "best"))
            falls = falls or bool(best[-1] <= np.nanmin(tests) < np.nanmax(tests))
        told: dict[str, Role] = {"learn": "loss", "test": "eval_loss"} if falls else {}
        told |= {"total": "other", "remaining": "other"}  # times
        return {key: role for key, role in told.items() if key in self._series}


def _without_settings(run: LogRun) -> LogRun:
    """Without records above the first loss of which one has a higher step: `lr 0.001`, `n_iter 200000` are settings."""
    loss = run.of("loss")
    first = int(loss.lines[0]) if loss is not None and len(loss) else -1
    before = int(np.count_nonzero(run.lines < first)) if first >= 0 else 0
    if loss is None or not before or (run.steps[:before] <= loss.steps[0]).all() or (run.lines[before:] < first).any():
        return run
    columns = tuple(replace(c, **{f: getattr(c, f)[c.lines >= first] for f in _OF_POINTS}) for c in run.columns)
    rest = slice(before, None)
    return replace(run, columns=columns, steps=run.steps[rest], lines=run.lines[rest], times=run.times[rest])


def _as(values: array[Any], kind: type[np.generic]) -> NDArray[Any]:
    """The values without a copy; the caller must drop them before the array grows."""
    return np.frombuffer(values, dtype=kind)


def _picked(values: array[Any], keep: NDArray[np.bool_]) -> array[Any]:
    """Keep the selected elements, as an array of their size."""
    return array(values.typecode, np.frombuffer(values, dtype=values.typecode)[keep].tobytes())


def assign_roles(points: Mapping[str, int]) -> dict[str, Role]:
    """Role of each column by its name. One candidate becomes the loss; the others become components.

    points: number of points of each column; a rare column is not the training loss.
    """
    roles = {key: role_of(key) for key in points}
    losses = [key for key, role in roles.items() if role == "loss"]
    if not losses:  # no total: the first component that is written as often as any
        parts = {key: points[key] for key, role in roles.items() if role == "component"}
        often = [key for key in parts if 2 * parts[key] >= max(parts.values())]
        losses = [key for key in points if plain(key) == "total" and often and points[key] >= max(parts.values())][:1]
        losses = losses or sorted(often, key=lambda key: not is_model_loss(key))[:1]
        losses = losses or [key for key in points if is_perplexity(key) and not is_eval(key)][:1]
        losses = losses or [key for key in points if is_error(key)][:1]
        roles |= dict.fromkeys(losses, "loss")
    if "eval_loss" not in roles.values():
        roles |= dict.fromkeys([key for key in points if is_perplexity(key) and is_eval(key)][:1], "eval_loss")
    most = max((points[key] for key in losses), default=0)
    told = "eval_loss" in roles.values()
    best = min(losses, key=lambda key: (points[key] < 0.2 * most, loss_rank(key, told), -points[key]), default=None)
    return {key: "component" if role == "loss" and key != best else role for key, role in roles.items()}
