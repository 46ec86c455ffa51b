"""A run log as OpenMetrics text: what Prometheus would have stored by scraping the agent during the run.

The names, labels and values come from the collector that serves /metrics. It is moved through the log by the times of
the records. The series of a family follow each other, each in the order of time, as the format requires.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from stabwatch.alerts import DERIVED, RULES, Engine, Rule
from stabwatch.alerts.engine import ENGINE_EVENTS
from stabwatch.alerts.timeline import begin, lead
from stabwatch.errors import RunLogError
from stabwatch.exporters.latest import Latest, SeriesCap
from stabwatch.exporters.prometheus import DerivedMetric, RunCollector, Snapshot
from stabwatch.exporters.sink import RunHeader
from stabwatch.exporters.snapshots import snapshot
from stabwatch.runlog import Event, Meta, RecordBatch
from stabwatch.runlog.source import record_slice

INTERVAL = 15.0
"""Seconds between scrapes, as in exporters/prometheus.yml."""
SCRAPES = 240
"""Fewest scrapes of a run; a short run has shorter intervals."""
SHORTEST = 0.1
GAP_SECONDS = 3600.0
"""A longer silence is not filled with scrapes."""
FLUSH = 1000
"""Samples of a family in memory."""
Scrape = tuple[float, list[Metric]]
"""Time in seconds since the epoch, and what was shown then."""
SPOOLED = np.dtype([("series", np.int32), ("ms", np.int64), ("value", np.float64)])


class OpenMetricsSink:
    """Writes a run as text for `promtool tsdb create-blocks-from openmetrics`; counts samples.

    interval: seconds between scrapes; 15, or less for a run of less than an hour.
    """

    def __init__(self, out: BinaryIO, interval: float | None = None, rules: Sequence[Rule] = RULES) -> None:
        self._out = out
        self._interval = interval
        self._rules = rules

    def open(self, run: RunHeader) -> None:
        """See Sink."""
        self._folder = tempfile.TemporaryDirectory(prefix="stabwatch-")
        self._families = _Families(Path(self._folder.name))
        self._scraper = Scraper(run.meta, scrape_interval(run, self._interval), self._rules)

    def write(self, batch: RecordBatch) -> None:
        """See Sink."""
        self._add(self._scraper.write(batch))

    def write_event(self, event: Event) -> None:
        """See Sink."""
        self._add(self._scraper.write_event(event))

    def close(self) -> int:
        """See Sink."""
        with self._folder:
            self._add(self._scraper.finish())
            return self._families.write(self._out)

    def _add(self, scrapes: Iterable[Scrape]) -> None:
        for time, metrics in scrapes:
            self._families.add(round(1000 * time), metrics)


def suitable_interval(seconds: float) -> float:
    """Seconds between scrapes for a run of this length."""
    return min(INTERVAL, max(seconds / SCRAPES, SHORTEST))


def scrape_interval(run: RunHeader, wanted: float | None) -> float:
    """Seconds between scrapes of a run: the wanted number, or what suits its length, which a live run has not yet."""
    return wanted or (INTERVAL if run.live else suitable_interval(run.seconds))


class Scraper:
    """Yields what a scrape would have shown, every `interval` seconds, until just after the last record."""

    def __init__(self, meta: Meta, interval: float, rules: Sequence[Rule] = RULES) -> None:
        self._past = _Past(meta, rules)
        self._run = meta.run
        self._interval = interval
        self._due: int | None = None
        """The next scrape, in intervals since the epoch."""
        self._seen = -math.inf

    def write(self, batch: RecordBatch) -> Iterator[Scrape]:
        """The scrapes that were due before these records."""
        if math.isnan(begin(batch)):
            raise RunLogError(f"{self._run} has no times, which Prometheus requires: use --csv or --parquet.")
        later = np.diff(np.ceil(batch.times / self._interval)) > 0
        for start, stop in pairwise([0, *(np.flatnonzero(later) + 1).tolist(), len(batch)]):
            yield from self._take(record_slice(batch, start, stop))

    def write_event(self, event: Event) -> Iterator[Scrape]:
        """The scrapes that were due before this event."""
        if event.kind in ENGINE_EVENTS:
            yield from self._take(event)

    def finish(self) -> Iterator[Scrape]:
        """The scrape after the last record."""
        if self._due is not None:
            yield self._scrape(self._due)

    def _take(self, item: RecordBatch | Event) -> Iterator[Scrape]:
        this = math.ceil(begin(item) / self._interval)
        while self._due is not None and self._due < this:
            yield self._scrape(self._due)
            following = self._due + 1
            self._due = following if following * self._interval <= self._seen + GAP_SECONDS else this
        self._past.take(item)
        self._seen = max(self._seen, item.time if isinstance(item, Event) else float(item.times[-1]))
        if self._due is None and isinstance(item, RecordBatch):
            self._due = this

    def _scrape(self, due: int) -> Scrape:
        return due * self._interval, self._past.collect(due * self._interval)


class _Past:
    """The state of an agent that had followed the run, on the clock of its records."""

    def __init__(self, meta: Meta, rules: Sequence[Rule]) -> None:
        self._meta = meta
        self._engine = Engine(rules)
        self._latest = Latest(SeriesCap())
        self._violations: Counter[tuple[str, str]] = Counter()
        self._state = "running"
        self._shown = Snapshot(run=meta.run)
        derived = [DerivedMetric(d.name, d.help) for d in DERIVED]
        self._collector = RunCollector(lambda: self._shown, derived, [(r.name, r.severity) for r in rules])

    def take(self, item: RecordBatch | Event) -> None:
        """Take the next records or event."""
        for alert in lead(self._engine, item):
            self._violations[alert.rule, alert.layer] += alert.state == "firing"
        if isinstance(item, RecordBatch):
            self._latest.observe(item, float(item.times[-1]))
        else:
            self._state = str(item.data.get("reason", "ended")) if item.kind == "end" else "running"

    def collect(self, now: float) -> list[Metric]:
        """The metric families of a scrape."""
        self._shown = snapshot(
            self._meta,
            self._latest,
            now,
            state=self._state,
            derived=self._engine.derived,
            firing=[(a.rule, a.severity, a.layer) for a in self._engine.active],
            violations=self._violations,
        )
        return list(self._collector.collect())


class _Families:
    """Samples, spooled to one file per family: only the largest family must fit into memory."""

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
        """Write everything. Returns the number of samples."""
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
