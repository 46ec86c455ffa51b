"""What the host knows of a step without asking the device: times, counts, rates, and the batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.actions import batch_of
from stabwatch.hooks.base.batch_projection import BatchNumbers, numbers_of, project
from stabwatch.hooks.base.host_transfer import HostTransfer
from stabwatch.hooks.loaders import LOADED
from stabwatch.runlog import host_accumulator
from stabwatch.runtime.batch_shift import BatchShift

BATCH = 8
"""Samples of a forward beside which one of a single sample acts, and does not train."""
_HOST_GAUGES = (
    "step_seconds", "data_wait_seconds", "samples_per_second", "learning_rate", "overhead_ratio", "taps_missing",
    "evaluation_mode_ratio", "clip_limit", "clip_value", "backward_passes", "forward_passes", "calls_without_gradient",
    "batch_repeated", "loader_restarted", "opponent_steps", "clip_late_ratio", "scaled_step_ratio",
    "loss_terms_unscaled", "weight_decay_ratio",
    "closure_passes", "weights_written", "validation_in_training_ratio", "dropout_in_evaluation", "batch_shift_ratio",
)  # fmt: skip
_GAUGES = len(_HOST_GAUGES) - 1
"""Those that are known when the step ends: the last one is computed from the batch when the record is written."""
_HOST_COUNTS = (
    "skipped_steps_total", "probe_errors_total", "records_dropped_total", "optimizer_resets_total",
)  # fmt: skip


class HostPart(NamedTuple):
    """What the rank that writes the record adds to it, and what is not merged over ranks.

    time: seconds since the epoch. numbers: of the host's gauges, NaN where not known, and increments of its counters.
    batch: of the first forward. logged: what the user logged, by name.
    """

    time: float
    numbers: tuple[float, ...]
    batch: BatchNumbers | None
    logged: Mapping[str, HostTransfer]

    def fields(self, shifts: BatchShift, shield: Callable[..., None]) -> NDArray[np.float64]:
        """Those of the host accumulators, (count, value) each.

        shifts: has observed the batches of the steps before. shield: calls what must not cost the record.
        """
        shift: list[float] = []
        if self.batch is not None:
            shield("pace", lambda batch: shift.append(shifts.observe(project(batch))), self.batch)
        values = np.array((*self.numbers[:_GAUGES], *(shift or [math.nan]), *self.numbers[_GAUGES:]))
        fields = np.empty(2 * len(values))
        fields[::2], fields[1::2] = ~np.isnan(values), values
        return fields


@dataclass
class HostNumbers:
    """Numbers of a step that are known on the host. Counters are running totals here, increments in the log."""

    step_seconds: float = math.nan
    data_wait: float = math.nan
    samples: int = 0
    learning_rate: float = math.nan
    overhead: float = math.nan
    taps_missing: float = math.nan
    skipped: int = 0
    errors: int = 0
    dropped: int = 0
    resets: int = 0
    evaluating: float = math.nan
    passes: int = 0
    forwards: int = 0
    closures: int = 0
    acted: int = 0
    validated: float = 0.0
    dropped_in_evaluation: float = math.nan
    opposed: float = math.nan
    singles: int = 0
    largest: int = 0
    repeated: float = math.nan
    restarted: float = math.nan
    _loaded: tuple[int, int] = field(default_factory=lambda: (LOADED.begun, LOADED.given))
    """Iterators of loaders that were begun before the first forward of the step, and batches that they gave."""
    batch: BatchNumbers | None = None
    _some: bytes = b""
    _before: bytes = b""
    clip_limit: float = math.nan
    clip_value: float = math.nan
    clip_late: float = math.nan
    scaled_step: float = math.nan
    bare_terms: float = math.nan
    decay: float = math.nan
    written: float = math.nan
    _written: tuple[int, int, int, int] = (0, 0, 0, 0)

    def forward_begins(self, inputs: tuple[Any, ...], began: float) -> None:
        """A training forward starts, in a step that started at `began` on the clock of `time.perf_counter`."""
        if math.isnan(self.data_wait):
            self.data_wait = time.perf_counter() - began
        if not self.forwards:
            self._compare(inputs)
        self.forwards += 1
        batch = next((x for x in inputs if isinstance(x, Tensor) and x.dim()), None)
        if batch is not None:
            samples = batch.size(0)  # nested tensors have no `shape`
            self.samples += samples
            self.singles += samples == 1
            self.largest = max(self.largest, samples)

    def _compare(self, inputs: tuple[Any, ...]) -> None:
        """Is the first batch of the step that of the step before? Not known on a device."""
        self.batch = numbers_of(batch_of(inputs))
        now, before = b"" if self.batch is None else self.batch.some, self._some
        self.repeated = float(now == before) if now and before else math.nan
        self._before, self._some = before, now
        begun, given = LOADED.begun - self._loaded[0], LOADED.given - self._loaded[1]
        self._loaded = LOADED.begun, LOADED.given
        if begun:
            self.restarted = float(given <= begun and self.repeated == 1)

    def clipped(self, late: float, limit: Any = None, value: Any = None) -> None:
        """Gradients were clipped, to a norm of `limit` or to numbers of `value`.

        late: 1 if after the step that used them, 0 if before, NaN if that is not known.
        """
        if isinstance(limit, int | float):
            self.clip_limit = max(float(limit), self.clip_limit)  # NaN, of none so far, is never kept
        if isinstance(value, int | float):
            self.clip_value = max(float(value), self.clip_value)
        if not math.isnan(late) and not self.clip_late <= late:
            self.clip_late = late

    @property
    def has_clipped(self) -> bool:
        """Were gradients clipped in the open step?"""
        return not math.isnan(self.clip_limit) or not math.isnan(self.clip_value)

    @property
    def trained_on(self) -> tuple[bytes, bytes]:
        """Numbers of the first batch of the step before and of this one; b'' where there are none on the host."""
        return self._before, self._some

    def next_step(self) -> None:
        """Reset what is counted within a step."""
        self.data_wait, self.samples, self.passes, self.forwards = math.nan, 0, 0, 0
        self.singles = self.largest = self.closures = 0
        self.clip_limit = self.clip_value = math.nan
        self.evaluating = self.repeated = self.clip_late = self.scaled_step = math.nan
        self.bare_terms = self.restarted = math.nan
        self.batch, self.written = None, math.nan

    def part(self, logged: Mapping[str, Tensor]) -> HostPart:
        """What the host adds to the record of this step. logged: accumulators of what the user logged, by name."""
        sent = {name: HostTransfer(aggregates) for name, aggregates in logged.items()} if logged else {}
        return HostPart(time.time(), self._numbers(), self.batch, sent)

    def _numbers(self) -> tuple[float, ...]:
        """See `HostPart`; of counters the increments since the last call."""
        skipped, errors, dropped, resets = self._written
        self._written = self.skipped, self.errors, self.dropped, self.resets
        timed = self.samples and self.step_seconds > 0  # a clock may stand still: frozen by a test, or coarse
        return (
            self.step_seconds, self.data_wait, self.samples / self.step_seconds if timed else math.nan,
            self.learning_rate, self.overhead, self.taps_missing, self.evaluating, self.clip_limit,
            self.clip_value, self.passes or math.nan, self.forwards or math.nan,
            self.acted + (self.singles if self.largest >= BATCH else 0), self.repeated, self.restarted,
            self.opposed, self.clip_late, self.scaled_step, self.bare_terms, self.decay, self.closures or math.nan,
            self.written, self.validated, self.dropped_in_evaluation,
            self.skipped - skipped, self.errors - errors, self.dropped - dropped, self.resets - resets,
        )  # fmt: skip


HOST_ACCUMULATORS = tuple(host_accumulator(name) for name in (*_HOST_GAUGES, *_HOST_COUNTS))
