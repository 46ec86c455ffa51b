"""The newest numbers of a run and the shape of its loss, from a few reads: for a list of many runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from stabwatch.errors import RunLogError
from stabwatch.runlog.schema import RecordBatch, segments_of
from stabwatch.runlog.segment import SegmentTail

NEWEST = 8
"""Newest records that are read: signals that are sampled are in one of them, or stay as they were."""


class Glance:
    """Reads a few records of a run. What cannot be read is left out.

    values: the last measured value of each signal of the whole run; a measured value may be NaN.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._segments: dict[Path, SegmentTail] = {}
        self._seen: tuple[Path, int] | None = None
        self.step: int | None = None
        self.time: float | None = None
        self.values: dict[str, float] = {}
        self.problem = ""
        """Why the last segment that was asked for cannot be read."""

    def poll(self) -> bool:
        """Read the newest records, if there are new ones. Whether there were."""
        paths = segments_of(self._run)
        if not paths:
            return False
        try:
            now = (paths[-1], paths[-1].stat().st_size)
        except OSError:
            return False
        if now == self._seen:
            return False
        block = self._pick(paths[-1], NEWEST, newest=True)
        if block is None:
            return False
        self._seen = now
        measured = block.measured
        for i, key in enumerate(block.layout.keys):
            seen = block.values[measured[:, i], i]
            if len(seen):
                self.values[key.signal] = float(seen[-1])
        self.step, self.time = int(block.steps[-1]), float(block.times[-1])
        return True

    def sample(self, signal: str, count: int) -> list[float | None]:
        """At most `count` values of a signal of the whole run, evenly over its records; None: not finite."""
        found: list[float | None] = []
        for path in segments_of(self._run):
            block = self._pick(path, count)
            keys = () if block is None else block.layout.keys
            column = next((i for i, key in enumerate(keys) if key.signal == signal), None)
            if block is not None and column is not None:
                values = block.values[block.measured[:, column], column].tolist()
                found += [v if math.isfinite(v) else None for v in values]
        return found[:: math.ceil(len(found) / count)] if found else []

    def close(self) -> None:
        """Forget how the segments are laid out, which needs memory."""
        self._segments.clear()

    def _pick(self, path: Path, count: int, newest: bool = False) -> RecordBatch | None:
        try:
            block = self._segments.setdefault(path, SegmentTail(path)).pick(count, newest)
        except (RunLogError, OSError, ValueError) as error:
            self.problem = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}."
            return None
        return None if block is None else replace(block, layout=block.layout.of_run)
