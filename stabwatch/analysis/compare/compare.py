"""Comparison of runs: different settings, where curves diverge, and which signal and layer diverged first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stabwatch.alerts.evidence import TOGETHER
from stabwatch.analysis.analyze import analyze_source
from stabwatch.analysis.compare.curve_set import CurveSet, curve_sets, keys_of
from stabwatch.analysis.compare.divergence_point import DivergencePoint, divergence_point
from stabwatch.analysis.compare.sweep import Sensitivity, sensitivities
from stabwatch.analysis.compare.widths import Widths, widths
from stabwatch.analysis.sources import named
from stabwatch.exporters.declared import adopt, declared
from stabwatch.runlog import SeriesKey, plain
from stabwatch.runlog.source import Source
from stabwatch.signals import CATALOGUE

SCHEMA_VERSION = 2
OF_TRAINING = ("learning_rate", "loss_scale")
"""Host signals of the training. Pace and monitoring cost are not compared: they also differ for other reasons."""


@dataclass(frozen=True)
class Difference:
    """A fact that differs between runs, with its value in each; None if unknown."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Diverged:
    """A series that diverges."""

    signal: str
    layer: str
    divergence: DivergencePoint

    @property
    def step(self) -> int:
        """Where."""
        return self.divergence.step or 0


@dataclass(frozen=True)
class Pair:
    """A run compared with the reference.

    loss: None without enough common points. diverged: series that diverge, by step. The order of the first `together`
    of them is not reliable, because their steps are too close; there, the clearest comes first.
    compared: number of compared series; short: those with too few common points. only_here, only_there: series that
    only one of the two has.
    """

    run: str
    loss: DivergencePoint | None
    diverged: tuple[Diverged, ...]
    together: int
    compared: int
    short: int
    only_here: int
    only_there: int


@dataclass(frozen=True)
class Comparison:
    """Several runs; the first is the reference.

    window: steps per point. verdicts: the verdict of `analyze` for each run.
    """

    runs: tuple[str, ...]
    paths: tuple[Path, ...]
    window: int
    differences: tuple[Difference, ...]
    pairs: tuple[Pair, ...]
    widths: Widths | None
    sensitivity: tuple[Sensitivity, ...]
    verdicts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are None."""
        return plain({"schema_version": SCHEMA_VERSION, **asdict(self), "paths": [str(path) for path in self.paths]})


def compare(logs: Sequence[Source], progress: Callable[[Source], None] | None = None) -> Comparison:
    """Compare two or more runs. Raises RunLogError."""
    analyses = [analyze_source(log, progress=progress) for log in logs]
    found = compare_subjects(curve_sets(named(logs), [(a.run, a.window) for a in analyses]))
    return replace(found, verdicts=tuple(a.diagnosis.verdict for a in analyses))


def compare_subjects(subjects: Sequence[CurveSet]) -> Comparison:
    """Compare runs in memory."""
    for subject in subjects:
        adopt(subject.run.meta.signals)
    return Comparison(
        runs=tuple(s.name for s in subjects),
        paths=tuple(s.run.path for s in subjects),
        window=subjects[0].window,
        differences=differences(subjects),
        pairs=tuple(_pair(subjects[0], other) for other in subjects[1:]),
        widths=widths(subjects),
        sensitivity=sensitivities(subjects),
    )


def differences(subjects: Sequence[CurveSet]) -> tuple[Difference, ...]:
    """Facts that differ, in the order in which they were found."""
    names = dict.fromkeys(name for s in subjects for name in s.facts)
    rows = [Difference(name, tuple(s.facts.get(name) for s in subjects)) for name in names]
    return tuple(row for row in rows if any(value != row.values[0] for value in row.values))


def _pair(reference: CurveSet, other: CurveSet) -> Pair:
    keys = [key for key in keys_of([reference, other]) if _compared(key)]
    found = [(key, divergence_point(reference.curve(*_of(key)), other.curve(*_of(key)))) for key in keys]
    judged = [(key, p) for key, p in found if p is not None]
    apart = [Diverged(*_of(key), p) for key, p in judged if p.step is not None]
    apart.sort(key=lambda one: one.step)
    limit = apart[0].step + max(TOGETHER, apart[0].divergence.resolution) if apart else 0
    together = sum(one.step <= limit for one in apart)
    apart[:together] = sorted(apart[:together], key=lambda one: -one.divergence.strength)
    here, there = set(other.run.keys), set(reference.run.keys)
    return Pair(
        run=other.name,
        loss=next((p for key, p in judged if key == SeriesKey("loss")), None),
        diverged=tuple(apart),
        together=together,
        compared=len(judged),
        short=len(found) - len(judged),
        only_here=len(here - there),
        only_there=len(there - here),
    )


def _of(key: SeriesKey) -> tuple[str, str]:
    return key.signal, key.layer


def _compared(key: SeriesKey) -> bool:
    """Whether a series is compared: not a counter, an index (a head), or a host signal of pace and cost."""
    if key.signal in OF_TRAINING:
        return True
    host = key.signal in CATALOGUE and CATALOGUE[key.signal].tap == "host"
    return declared(key.signal).worst is not None and not host
