"""The content of another trainer's log: output of readers, input of detectors, report and comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal[
    "loss",
    "eval_loss",
    "grad_norm",
    "learning_rate",
    "loss_scale",
    "skipped_steps",
    "nan_steps",
    "step_seconds",
    "throughput",
    "component",
    "other",
]
"""Meaning of a column for the detectors. `loss`: the training loss, at most one column of a run. `component`: a part of
it. `step_seconds`: seconds per step. `skipped_steps`, `nan_steps`: since the record before."""

StepUnit = Literal["step", "epoch", "ordinal"]
"""`ordinal`: the log has no step, and its records are numbered."""


@dataclass(frozen=True)
class Column:
    """One quantity of a log, in the order of the file, with a point for each record that has it.

    name: as in the log. steps, values, lines: (points,). values keep NaN and infinities of the log;
    lines are 1-based, -1 where the format has none (binary, JSON documents).
    """

    name: str
    role: Role
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Remark:
    """A relevant line that is not a record: an overflow, an exception, a saved checkpoint.

    kind: 'overflow', 'nan_message', 'error', 'checkpoint', 'restart'. step: of the
    line or of the record before it, None if none. value: the number in the line (the new loss scale), NaN if none.
    stepped: the line itself has the step.
    """

    kind: str
    step: int | None
    line: int
    text: str
    value: float = float("nan")
    stepped: bool = False


@dataclass(frozen=True)
class LogRun:
    """One run of a log. Copies of a record by other ranks are removed; steps that go back are kept.

    steps, lines, times: (records,), of all training records, also those without a loss; times in seconds
    (since the epoch or since the start), NaN where unknown. comparable: whether losses of different steps are; not
    those of a policy, a value or a game. searched: a step evaluates the loss many times (L-BFGS).
    epoch: the last that is printed, None if none is.
    """

    name: str
    columns: tuple[Column, ...]
    steps: NDArray[np.int64]
    lines: NDArray[np.int64]
    times: NDArray[np.float64]
    step_unit: StepUnit = "step"
    remarks: tuple[Remark, ...] = ()
    config: dict[str, object] = field(default_factory=dict)
    comparable: bool = True
    searched: bool = False
    epoch: float | None = None

    def of(self, role: Role) -> Column | None:
        """The first column of a role."""
        return next(self.all_of(role), None)

    def all_of(self, role: Role) -> Iterator[Column]:
        """All columns of a role."""
        return (column for column in self.columns if column.role == role)


@dataclass(frozen=True)
class Log:
    """The log at a path. notes: what was recognised, guessed and left out, in words."""

    path: Path
    format: str
    runs: tuple[LogRun, ...]
    notes: tuple[str, ...] = ()
