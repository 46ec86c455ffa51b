"""A run log as OpenMetrics text: what Prometheus would hold if it had scraped the run's agent all along.

The names, labels and values come from the collector that serves /metrics, led through the log by the times of its
records. A family's series stand one after the other, each in the order of time, as the format asks.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from stabwatch.alerts import DERIVED, RULES, Engine, Rule
from stabwatch.alerts.timeline import begin, lead, timeline
from stabwatch.errors import RunLogError
from stabwatch.exporters.declared import adopt
from stabwatch.exporters.latest import Latest, SeriesCap
from stabwatch.exporters.prometheus import DerivedMetric, RunCollector, Snapshot
from stabwatch.exporters.snapshots import snapshot
from stabwatch.runlog import Event, RecordBatch
from stabwatch.runlog.schema import segments_of
from stabwatch.runlog.source import Source

INTERVAL = 15.0
"""Seconds between scrapes, as in exporters/prometheus.yml."""
SCRAPES = 240
"""A run is scraped about this often at least: a short one at shorter intervals."""
SHORTEST = 0.1
GAP_SECONDS = 3600.0
"""A longer silence is not filled with scrapes."""
FLUSH = 1000
"""Samples of a family in memory."""
SPOOLED = np.dtype([("series", np.int32), ("ms", np.int64), ("value", np.float64)])


def write_openmetrics(
    log: Source,
    out: BinaryIO,
    interval: float | None = None,
    rules: Sequence[Rule] = RULES,
    progress: Callable[[Source], None] | None = None,
) -> int:
    """Write a run as text for `promtool tsdb create-blocks-from openmetrics`; gives the number of samples.

    interval: seconds between scrapes; 15, or less for a run of less than an hour.
    """
    said = log.poll_events()
    with tempfile.TemporaryDirectory(prefix="stabwatch-") as folder:
        families = _Families(Path(folder))
        for time, metrics in scrapes(log, said, interval or suitable_interval(log, said), rules):
            families.add(round(1000 * time), metrics)
            if progress is not None:
                progress(log)
        return families.write(out)


def suitable_interval(log: Source, said: Iterable[Event]) -> float:
    """Seconds between scrapes for a run of this length."""
    ends = [path.stat().st_mtime for path in segments_of(log.path)]
    ends += [e.time for e in said if e.kind == "end"][-1:]
    seconds = ends[-1] - log.meta.created if ends else 0.0
    return min(INTERVAL, max(seconds / SCRAPES, SHORTEST))


def scrapes(
    log: Source, said: Iterable[Event], interval: float, rules: Sequence[Rule] = RULES
) -> Iterator[tuple[float, list[Metric]]]:
    """What a scrape would have shown, every `interval` seconds, from the first record to just after the last."""
    adopt(log.meta.signals)
    past = _Past(log, rules)
    due: int | None = None
    """The next scrape, in intervals since the epoch."""
    seen = -math.inf
    for item in timeline(log, said, interval):
        if math.isnan(begin(item)):
            raise RunLogError(f"{log.path} has no times, and Prometheus keeps nothing without: try --csv or --parquet.")
        this = math.ceil(begin(item) / interval)
        while due is not None and due < this:
            yield due * interval, past.collect(due * interval)
            due = due + 1 if (due + 1) * interval <= seen + GAP_SECONDS else this
        past.take(item)
        seen = max(seen, item.time if isinstance(item, Event) else float(item.times[-1]))
        due = this if due is None and isinstance(item, RecordBatch) else due
    if due is not None:
        yield due * interval, past.collect(due * interval)


class _Past:
    """An agent that was not there: led through the log, with the clock of the records."""

    def __init__(self, log: Source, rules: Sequence[Rule]) -> None:
        self._meta = log.meta
        self._engine = Engine(rules)
        self._readings = Latest(SeriesCap())
        self._violations: Counter[tuple[str, str]] = Counter()
        self._state = "running"
        self._shown = Snapshot(run=log.meta.run)
        derived = [DerivedMetric(d.name, d.help) for d in DERIVED]
        self._collector = RunCollector(lambda: self._shown, derived, [(r.name, r.severity) for r in rules])

    def take(self, item: RecordBatch | Event) -> None:
        """See what came next."""
        for alert in lead(self._engine, item):
            self._violations[alert.rule, alert.layer] += alert.state == "firing"
        if isinstance(item, RecordBatch):
            self._readings.observe(item, float(item.times[-1]))
        else:
            self._state = str(item.data.get("reason", "ended")) if item.kind == "end" else "running"

    def collect(self, now: float) -> list[Metric]:
        """The families of a scrape."""
        self._shown = snapshot(
            self._meta,
            self._readings,
            now,
            state=self._state,
            derived=self._engine.derived,
            firing=[(a.rule, a.severity, a.layer) for a in self._engine.active],
            violations=self._violations,
        )
        return list(self._collector.collect())


class _Families:
    """Samples, spooled to one file for each family: the memory that is needed is that of the largest family."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._families: dict[str, _Family] = {}

    def add(self, ms: int, metrics: Iterable[Metric]) -> None:
        """Take the samples of one scrape."""
        for metric in metrics:
            family = self._families.get(metric.name)
            if family is None:
                family = self._families[metric.name] = _Family(metric, self._folder / str(len(self._families)))
            family.add(ms, metric)

    def write(self, out: BinaryIO) -> int:
        """Write everything; gives the number of samples."""
        samples = sum(family.write(out) for family in self._families.values())
        out.write(b"# EOF\n")
        return samples


class _Family:
    def __init__(self, metric: Metric, spool: Path) -> None:
        self._head = (
            f"# HELP {metric.name} {_escaped(metric.documentation)}\n# TYPE {metric.name} {metric.type}\n"
        ).encode()
        self._spool = spool
        self._series: dict[str, int] = {}
        self._rows: list[tuple[int, int, float]] = []

    def add(self, ms: int, metric: Metric) -> None:
        for sample in metric.samples:
            labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
            series = self._series.setdefault(f"{sample.name}{{{labels}}}", len(self._series))
            self._rows.append((series, ms, sample.value))
        if len(self._rows) >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        with open(self._spool, "ab") as file:
            file.write(np.array(self._rows, SPOOLED).tobytes())
        self._rows.clear()

    def write(self, out: BinaryIO) -> int:
        self._flush()
        rows = np.fromfile(self._spool, SPOOLED)
        os.unlink(self._spool)
        names = list(self._series)
        out.write(self._head)
        order = np.argsort(rows["series"], kind="stable")
        number: Callable[[float], str] = floatToGoString
        for start in range(0, len(rows), FLUSH):
            for series, ms, value in rows[order[start : start + FLUSH]].tolist():
                out.write(f"{names[series]} {number(value)} {ms / 1000:.3f}\n".encode())
        return len(rows)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
