"""From records, one at a time, to the runs of a log: columns, copies taken out, roles given."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.logs import Column, LogRun, Remark, Role, StepUnit
from stabwatch.analysis.readers.names import is_eval, loss_rank, role_of

Floats = NDArray[np.float64]
MOST_COLUMNS = 4096
"""More keys than that are no log of a training; the rest is left out, and said."""


@dataclass
class _Series:
    trains: bool
    """Its values make a record a training record."""
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    lines: array[int] = field(default_factory=lambda: array("q"))


class Gatherer:
    """Takes records in the order of the file. A key that comes twice for a step in a row is a copy and is left out."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._series: dict[str, _Series] = {}
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
            self._training = True

    def extend(self, steps: NDArray[np.int64], lines: NDArray[np.int64], columns: Mapping[str, Floats]) -> None:
        """Many records at once, each with all columns; their steps rise, from above that of the newest record."""
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
            self._times.frombytes(np.full(len(steps), math.nan).tobytes())
        self._last, self._training, self._now = int(steps[-1]), training, set(columns)

    def _new(self, key: str) -> _Series | None:
        if len(self._series) >= MOST_COLUMNS:
            return None
        role = role_of(key)
        alone = role == "other" and not is_eval(key) and len(self._series) < 2
        series = self._series[key] = _Series(trains=alone or role not in ("eval_loss", "other"))
        return series

    def remark(self, kind: str, line: int, text: str, value: float = math.nan) -> None:
        """A line that says something."""
        if len(self.remarks) < 100_000:
            self.remarks.append(Remark(kind, self._last, line, text[:300], value))

    def run(self, name: str | None = None) -> LogRun:
        """What was gathered."""
        roles = assign_roles({key: len(series.values) for key, series in self._series.items()})
        columns = []
        for key, series in self._series.items():
            arrays = (np.frombuffer(a, dtype=t).copy() for a, t in
                      ((series.steps, np.int64), (series.values, np.float64), (series.lines, np.int64)))  # fmt: skip
            columns.append(Column(key, roles[key], *arrays))
        return LogRun(
            name=self.name if name is None else name,
            columns=tuple(columns),
            steps=np.frombuffer(self._steps, dtype=np.int64).copy(),
            lines=np.frombuffer(self._lines, dtype=np.int64).copy(),
            times=np.frombuffer(self._times, dtype=np.float64).copy(),
            step_unit=self.unit,
            remarks=tuple(self.remarks),
        )


def assign_roles(points: Mapping[str, int]) -> dict[str, Role]:
    """Role of each column by its name; of the candidates for the loss one, the others are components.

    points: how many each column has; one that hardly ever comes is no training loss.
    """
    roles = {key: role_of(key) for key in points}
    losses = [key for key, role in roles.items() if role == "loss"]
    if not losses:  # no total: the first part of it that is written as often as any
        parts = {key: points[key] for key, role in roles.items() if role == "component"}
        losses = [key for key in parts if 2 * parts[key] >= max(parts.values())][:1]
        roles |= dict.fromkeys(losses, "loss")
    most = max((points[key] for key in losses), default=0)
    told = "eval_loss" in roles.values()
    best = min(losses, key=lambda key: (points[key] < 0.2 * most, loss_rank(key, told), -points[key]), default=None)
    return {key: "component" if role == "loss" and key != best else role for key, role in roles.items()}
