"""From records, one at a time, to the runs of a log: columns, copies taken out, roles given."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from stabwatch.analysis.logs import Column, LogRun, Remark, Role, StepUnit
from stabwatch.analysis.readers.names import is_eval, loss_rank, role_of

MOST_COLUMNS = 4096
"""More keys than that are no log of a training; the rest is left out, and said."""


@dataclass
class _Series:
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    lines: array[int] = field(default_factory=lambda: array("q"))


class Gatherer:
    """Takes records in the order of the file. A key that comes twice for a step in a row is a copy and is left out."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._series: dict[str, _Series] = {}
        self._roles: dict[str, Role] = {}
        self._steps, self._lines, self._times = array("q"), array("q"), array("d")
        self._now: set[str] = set()
        self._last: int | None = None
        self._training = False
        self.remarks: list[Remark] = []
        self.unit: StepUnit = "step"
        self.left_out = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def last_step(self) -> int | None:
        """Step of the newest record."""
        return self._last

    def add(
        self,
        step: int,
        line: int,
        values: Mapping[str, float],
        time: float = math.nan,
        row: bool = False,
        new: bool = False,
    ) -> None:
        """One record, or more of the newest one.

        row: it counts as a training record whatever it holds. new: it is another record, though its step is the same.
        """
        if new or step != self._last:
            self._last, self._training = step, False
            self._now.clear()
        for key, value in values.items():
            self._put(key, step, line, value)
        training = row or any(self._trains(key) for key in values)
        if training and not self._training:
            self._steps.append(step)
            self._lines.append(line)
            self._times.append(time)
            self._training = True

    def _put(self, key: str, step: int, line: int, value: float) -> None:
        if key in self._now:
            return
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MOST_COLUMNS:
                self.left_out += 1
                return
            series = self._series[key] = _Series()
            self._roles[key] = role_of(key)
        self._now.add(key)
        series.steps.append(step)
        series.values.append(value)
        series.lines.append(line)

    def _trains(self, key: str) -> bool:
        role = self._roles.get(key, "other")
        return role not in ("eval_loss", "other") or (role == "other" and not is_eval(key) and len(self._series) < 3)

    def remark(self, kind: str, line: int, text: str, value: float = math.nan) -> None:
        """A line that says something."""
        if len(self.remarks) < 100_000:
            self.remarks.append(Remark(kind, self._last, line, text[:300], value))

    def run(self, name: str | None = None) -> LogRun:
        """What was gathered."""
        loss = min((k for k, r in self._roles.items() if r == "loss"), key=self._loss_order, default=None)
        columns = []
        for key, series in self._series.items():
            role = self._roles[key]
            if role == "loss" and key != loss:
                role = "component"
            arrays = (np.frombuffer(a, dtype=t).copy() for a, t in
                      ((series.steps, np.int64), (series.values, np.float64), (series.lines, np.int64)))  # fmt: skip
            columns.append(Column(key, role, *arrays))
        return LogRun(
            name=self.name if name is None else name,
            columns=tuple(columns),
            steps=np.frombuffer(self._steps, dtype=np.int64).copy(),
            lines=np.frombuffer(self._lines, dtype=np.int64).copy(),
            times=np.frombuffer(self._times, dtype=np.float64).copy(),
            step_unit=self.unit,
            remarks=tuple(self.remarks),
        )

    def _loss_order(self, key: str) -> tuple[bool, int, int]:
        """The best name; one that hardly ever comes is none."""
        points = len(self._series[key].values)
        most = max(len(self._series[k].values) for k, r in self._roles.items() if r == "loss")
        return points < 0.2 * most, loss_rank(key), -points
