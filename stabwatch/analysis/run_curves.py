"""The curves of a run folder as input of the detectors: run-scope signals, none by layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.log import Column, LogRun, Role
from stabwatch.analysis.readers.names import role_of
from stabwatch.analysis.readers.salience import salient
from stabwatch.runlog import RecordBatch, SeriesKey

MOST_POINTS = 1_000_000
"""Most points of all columns together. Above it, records without unusual values are thinned to one in 2, 4, 8 ..."""
MOST_COLUMNS = 256
"""Most logged values of the user; further ones are left out."""
LOGGED = "logged_value"
ROLES: dict[str, Role] = {
    "loss": "loss",
    "gradient_norm_before_clip": "grad_norm",
    "learning_rate": "learning_rate",
    "loss_scale": "loss_scale",
    "skipped_steps_total": "skipped_steps",
    "step_seconds": "step_seconds",
}
"""Run-scope signals that the detectors read, in addition to values logged by the user."""


class _Label(NamedTuple):
    """Name of a column. logged: by the training loop, or by its trainer, which may give it the name of a signal."""

    name: str
    logged: bool


@dataclass
class _Curve:
    """Points of one column, in pieces. at: record number of each point. values: likewise."""

    role: Role
    at: list[NDArray[np.int64]] = field(default_factory=list)
    values: list[NDArray[np.float64]] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.values))

    def joined(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All points as two arrays. They replace the pieces."""
        self.at = [np.concatenate([np.empty(0, np.int64), *self.at])]
        self.values = [np.concatenate([np.empty(0), *self.values])]
        return self.at[0], self.values[0]


class RunCurves:
    """Takes the records of a run, batch by batch, in bounded memory."""

    def __init__(self) -> None:
        self._curves: dict[_Label, _Curve] = {}
        self._number: list[NDArray[np.int64]] = []
        self._steps: list[NDArray[np.int64]] = []
        self._times: list[NDArray[np.float64]] = []
        self._count, self._stride, self._check = 0, 1, MOST_POINTS

    def add(self, batch: RecordBatch) -> None:
        """More records."""
        if not len(batch):
            return
        numbers = np.arange(self._count, self._count + len(batch), dtype=np.int64)
        self._count += len(batch)
        self._number.append(numbers)
        self._steps.append(batch.steps.copy())
        self._times.append(batch.times.copy())
        values, measured = batch.values, batch.measured
        for i, key in enumerate(batch.layout.keys):
            label = _label(key)
            curve = self._curve(label) if label.name else None
            if curve is not None and (there := measured[:, i]).any():
                curve.at.append(numbers[there])
                curve.values.append(values[there, i])
        if self._points() > self._check:
            self._thin()

    def run(self, name: str) -> LogRun:
        """The kept records as a LogRun, with the record number (from 1) as the line."""
        steps = np.concatenate([np.empty(0, np.int64), *self._steps])
        numbers = np.concatenate([np.empty(0, np.int64), *self._number])
        times = np.concatenate([np.empty(0), *self._times])
        columns = []
        measured = {label.name for label, curve in self._curves.items() if not label.logged and len(curve)}
        for label, curve in self._curves.items():
            if label.logged and label.name in measured:
                continue
            at, values = curve.joined()
            columns.append(Column(label.name, curve.role, steps[np.searchsorted(numbers, at)], values, at + 1))
        return LogRun(name, _one_loss(columns), steps, numbers + 1, times)

    @property
    def note(self) -> str:
        """A note on the records left out, in words; empty if there are none."""
        if self._stride == 1:
            return ""
        return (
            f"The detectors read one in {self._stride} of the {self._count:,} records, and all records with "
            "unusual values."
        )

    def _curve(self, label: _Label) -> _Curve | None:
        if label not in self._curves and len(self._curves) < MOST_COLUMNS:
            self._curves[label] = _Curve(ROLES.get(label.name) or role_of(label.name))
        return self._curves.get(label)

    def _points(self) -> int:
        return sum(map(len, self._number)) + sum(map(len, self._curves.values()))

    def _thin(self) -> None:
        """Keep every other of the records kept so far, and those with unusual values."""
        self._stride *= 2
        steps, numbers, times = np.concatenate(self._steps), np.concatenate(self._number), np.concatenate(self._times)
        curves = {name: curve.joined() for name, curve in self._curves.items()}
        places = {name: np.searchsorted(numbers, at) for name, (at, _) in curves.items()}
        columns = [(self._curves[name].role, places[name], values) for name, (_, values) in curves.items()]
        keep = salient(steps, columns) | (numbers % self._stride == 0)
        for name, (at, values) in curves.items():
            mine = keep[places[name]]
            self._curves[name].at, self._curves[name].values = [at[mine]], [values[mine]]
        self._steps, self._number, self._times = [steps[keep]], [numbers[keep]], [times[keep]]
        self._check = max(MOST_POINTS, 2 * self._points())


def _label(key: SeriesKey) -> _Label:
    """Of the column of a series; an empty name if detectors do not read it."""
    if key.signal == LOGGED:
        return _Label(key.layer, True)
    return _Label(key.signal if key.signal in ROLES and not key.layer else "", False)


def _one_loss(columns: list[Column]) -> tuple[Column, ...]:
    """At most one column is the training loss: the measured one, or the first that the user logs often enough."""
    losses = [c for c in columns if c.role == "loss" and len(c)]
    most = max(map(len, losses), default=0)
    best = next((c for c in losses if c.name == "loss" and 2 * len(c) >= most), None)
    best = best or next((c for c in losses if 2 * len(c) >= most), None)
    return tuple(
        Column(c.name, "component", c.steps, c.values, c.lines) if c.role == "loss" and c is not best else c
        for c in columns
    )
