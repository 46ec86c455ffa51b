"""Builds a run from points by tag, in the order of the file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.log import Column, LogRun
from stabwatch.analysis.readers.run_builder import assign_roles

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Points:
    """Collects points by tag, any number at a time. count: number of points."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: dict[str, list[tuple[Ints, Ints, Floats, Floats]]] = {}
        self._before = 0

    def add(self, tag: str, at: Ints, steps: Ints, walls: Floats, values: Floats) -> None:
        """Add points: positions in the file, steps, wall times and values, each (points,)."""
        self._parts.setdefault(tag, []).append((at + self._before, steps, walls, values))
        self.count += len(at)

    def next_file(self, size: int) -> None:
        """Start the next file; its points follow all points so far."""
        self._before += size

    def run(self, name: str) -> LogRun:
        """The run: a record for each step with a training column (with any, if none is known), in the file's order."""
        columns, places = [], []
        merged = {tag: tuple(np.concatenate(c) for c in zip(*parts, strict=True)) for tag, parts in self._parts.items()}
        roles = assign_roles({tag: len(parts[0]) for tag, parts in merged.items()})
        known = any(role != "other" for role in roles.values())
        for tag, (at, steps, walls, values) in sorted(merged.items(), key=lambda item: int(item[1][0].min())):
            order = np.argsort(at, kind="stable")
            lines = np.full(len(at), -1, dtype=np.int64)
            columns.append(Column(tag, roles[tag], steps[order].astype(np.int64), values[order], lines))
            if roles[tag] not in ("eval_loss", "other") or not known or len(merged) < 3:
                places.append((at[order], steps[order], walls[order]))
        at, steps, walls = (np.concatenate(c) for c in zip(*places, strict=True)) if places else (np.zeros(0),) * 3
        order = np.argsort(at, kind="stable")
        steps, walls = steps[order].astype(np.int64), walls[order].astype(np.float64)
        new = np.append(True, np.diff(steps) != 0)[: len(steps)]
        return LogRun(name, tuple(columns), steps[new], np.full(int(new.sum()), -1, dtype=np.int64), walls[new])
