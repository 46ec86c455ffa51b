"""A run as input of the comparison and the forecast: named series, and facts of its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.sources import named
from stabwatch.runlog import Event, Meta, Run, SeriesKey
from stabwatch.runlog.downsample import load, merged
from stabwatch.runlog.source import Source

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]
LAST_SHARE = 0.1
"""Share of the run that counts as its end."""
LAST_RESORT = 0.25
"""Share of the run for signals that are measured too rarely for that."""
_OF_WATCHING = {"run", "root", "agent", "host", "port", "linger", "file_sd", "verbose"}
"""Settings of the monitoring, not of the training."""


@dataclass(frozen=True)
class CurveSet:
    """One run.

    window: steps per point. facts: configuration and environment, flat, by dotted name.
    """

    name: str
    run: Run
    window: int
    facts: dict[str, Any]

    def curve(self, signal: str, layer: str = "") -> Curve:
        """(steps, values) of the measured points of a series."""
        return self.run.series(signal, layer)

    def layers(self, signal: str) -> list[str]:
        """Layers that have a signal, in the order of the log."""
        return [key.layer for key in self.run.keys if key.signal == signal]

    def end(self, signal: str, layer: str = "") -> float:
        """Median over the last tenth of the run, or the last measurement in its last quarter.

        NaN without a measurement, infinity if most values are not finite.
        """
        steps, values = self.curve(signal, layer)
        if not len(steps):
            return math.nan
        first, last = int(self.run.steps.min()), int(self.run.steps.max())
        newest = values[-1:] if steps[-1] >= last - LAST_RESORT * (last - first) else values[:0]
        values = values[steps >= last - LAST_SHARE * (last - first)]
        values = values if len(values) else newest
        return float(np.median(np.where(np.isfinite(values), values, np.inf))) if len(values) else math.nan

    @property
    def learning_rate(self) -> float:
        """The peak learning rate, rounded to six digits as in logs; NaN if unknown."""
        rates = self.curve("learning_rate")[1]
        rates = rates[np.isfinite(rates)]
        return float(f"{rates.max():.6g}") if len(rates) else math.nan

    @property
    def parameters(self) -> float:
        """Number of parameters; NaN if unknown."""
        found = self.run.meta.model.get("parameters")
        return float(found) if isinstance(found, int | float) and found > 0 else math.nan

    def elements(self) -> dict[str, float]:
        """Number of parameters of each layer."""
        out: dict[str, float] = {}
        for block in self.run.blocks:
            for i, accumulator in enumerate(block.layout.accumulators):
                if (accumulator.tap, accumulator.reduction) == ("weight", "moments"):
                    counts = block.rows[:, block.layout.starts[i]]
                    counts = counts[counts > 0]
                    if len(counts):
                        out[accumulator.site] = float(counts.min())
        return out

    def sites(self, tap: str) -> set[str]:
        """Sites with a kind of tap."""
        return {
            accumulator.site
            for block in self.run.blocks
            for accumulator in block.layout.accumulators
            if accumulator.tap == tap
        }


def load_curve_sets(logs: Sequence[Source], progress: Callable[[Source], None] | None = None) -> tuple[CurveSet, ...]:
    """Read runs, with unique names and the same number of steps per point. Raises RunLogError."""
    return curve_sets(named(logs), [load(log, progress) for log in logs])


def curve_sets(names: Sequence[str], loaded: Sequence[tuple[Run, int]]) -> tuple[CurveSet, ...]:
    """Runs in memory, each with its steps per point, brought to the same number of steps per point."""
    widest = max((window for _, window in loaded), default=1)
    runs = [replace(run, blocks=tuple(merged(b, widest) for b in run.blocks)) for run, _ in loaded]
    return tuple(CurveSet(name, run, widest, facts(run)) for name, run in zip(names, runs, strict=True))


def facts(run: Run) -> dict[str, Any]:
    """The known configuration of a run, flat."""
    out = settings(run.meta, run.events)
    rates = run.series("learning_rate")[1]
    rates = rates[np.isfinite(rates)]
    out["learning_rate"] = f"{rates[0]:.6g} at first, {rates.max():.6g} at most" if len(rates) else None
    out["steps"] = int(run.steps[-1]) + 1 if len(run.steps) else 0
    ends = [e for e in run.events if e.kind in ("start", "end")][-1:]
    out["ended"] = str(ends[0].data.get("reason")) if ends and ends[0].kind == "end" else None
    return out


def settings(meta: Meta, events: Iterable[Event]) -> dict[str, Any]:
    """What a run was started with, flat, by dotted name."""
    watching = {name: value for name, value in meta.config.items() if name not in _OF_WATCHING}
    tree = {
        "model": {**meta.model, "layers": meta.model.get("layers") and len(meta.model["layers"])},
        "optimizer": [e.data for e in events if e.kind == "optimizer"],
        "world_size": meta.world_size,
        "host": meta.host,
        "versions": meta.versions,
        "stabwatch": watching,
    }
    return dict(_flat(tree))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    inside: Iterable[tuple[Any, Any]] | None = None
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        inside = enumerate(value)
    if inside is None:
        if value not in (None, []):
            yield name, value
        return
    alone = isinstance(value, list) and len(value) == 1
    for key, part in inside:
        yield from _flat(part, name if alone else f"{name}.{key}".lstrip("."))


def keys_of(subjects: Sequence[CurveSet]) -> list[SeriesKey]:
    """Series that all runs have, in the order of the first run."""
    shared = set.intersection(*(set(s.run.keys) for s in subjects))
    return [key for key in subjects[0].run.keys if key in shared]
