"""Work on whole logs, in processes of their own: judging ended runs, comparing runs."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from stabwatch.errors import StabwatchError
from stabwatch.serve.run import Row

WORKERS = 2
"""One for ended runs, one more for who waits at a page."""
POINTS = 600
"""Points of one curve of a comparison."""
CURVES = 12
"""Curves of layers that are sent along: those that diverge first."""


def _begin() -> None:
    with suppress(OSError):
        os.nice(10)


def analysed(path: Path) -> Row:
    """What `analyze` finds in a run, as fields of its row."""
    from stabwatch.alerts.incidents import worst_of
    from stabwatch.analysis.analyze import analyze

    try:
        found = analyze(path)
    except (StabwatchError, OSError) as error:
        return {"severity": "", "verdict": f"It cannot be analysed: {error}", "first": "", "active": 0}
    worst = worst_of(found.incidents)
    causes = found.diagnosis.causes
    return {
        "severity": "" if worst == "calm" else worst,
        "verdict": found.diagnosis.verdict,
        "first": causes[0].name if causes else "",
        "active": 0,
    }


def compared(paths: Sequence[Path]) -> dict[str, Any]:
    """Several runs compared, with the curves of signals of the whole run and of the series that diverge first.

    Raises RunLogError.
    """
    from stabwatch.analysis.compare.compare import compare_subjects
    from stabwatch.analysis.compare.curve_set import load_curve_sets
    from stabwatch.analysis.sources import open_sources
    from stabwatch.runlog import SeriesKey, plain

    subjects = load_curve_sets(open_sources(paths))
    found = compare_subjects(subjects)
    apart = [SeriesKey(d.signal, d.layer) for pair in found.pairs for d in pair.diverged if d.layer]
    keys = {key: None for s in subjects for key in s.run.keys if not key.layer} | dict.fromkeys(apart[:CURVES])
    curves = []
    for key in keys:
        lines = [_thinned(*s.curve(key.signal, key.layer)) for s in subjects]
        if sum(bool(steps) for steps, _ in lines) >= 1:
            curves.append({"signal": key.signal, "layer": key.layer, "lines": lines})
    return dict(plain({**found.to_dict(), "curves": curves}))


def _thinned(steps: Any, values: Any) -> tuple[list[int], list[float]]:
    """At most `POINTS` points: of each stretch the smallest and the largest value, so that every spike stays."""
    import numpy as np

    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) > POINTS:
        kept: set[int] = set()
        for part in np.array_split(np.arange(len(steps)), POINTS // 2):
            if not np.isnan(values[part]).all():
                kept |= {int(part[np.nanargmin(values[part])]), int(part[np.nanargmax(values[part])])}
        chosen = sorted(kept)
        steps, values = steps[chosen], values[chosen]
    return steps.tolist(), [float(f"{v:.5g}") for v in values.tolist()]


class Worker:
    """The processes. They start with the first work, and end with this process."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._others: list[multiprocessing.process.BaseProcess] = []
        self._lock = threading.Lock()

    def analyse(self, path: Path) -> Future[Row]:
        """See `analysed`."""
        return self._processes().submit(analysed, path)

    def compare(self, paths: Sequence[Path]) -> Future[dict[str, Any]]:
        """See `compared`."""
        return self._processes().submit(compared, list(paths))

    def close(self) -> None:
        """End the processes. The next work starts new ones."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    if child not in self._others:
                        child.terminate()
                self._pool = None

    def _processes(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._others = list(multiprocessing.active_children())
                spawn = multiprocessing.get_context("spawn")  # this process has threads
                self._pool = ProcessPoolExecutor(WORKERS, mp_context=spawn, initializer=_begin)
            return self._pool
