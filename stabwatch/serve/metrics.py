"""/metrics of many runs: the signals of the whole run and the alerts of each run that goes on, with the label `run`.

Metrics have the names that an agent gives them, so that rules and dashboards work. Layers are on each run's own
/metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stabwatch.exporters.declared import declared
from stabwatch.exporters.prometheus import RunCollector, Snapshot
from stabwatch.exporters.snapshots import info_labels
from stabwatch.runlog import SeriesKey
from stabwatch.serve.run import ListedRun, Row


@dataclass(frozen=True)
class ServiceState:
    """What is told of the service itself. states: number of runs by state. polled: seconds since the last round."""

    states: dict[str, int]
    polled: float
    errors: int


class RunsCollector(Collector):
    """All runs in one scrape but for their signals, which `SignalText` writes.

    snapshots: of the runs that are shown. state: of the service.
    """

    def __init__(self, snapshots: Callable[[], Sequence[Snapshot]], state: Callable[[], ServiceState]) -> None:
        self._snapshots = snapshots
        self._state = state

    def describe(self) -> list[Metric]:
        """Empty, because the names depend on the runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape, each with the samples of all runs."""
        families: dict[str, Metric] = {}
        for snapshot in self._snapshots():
            for family in RunCollector(_always(snapshot), signals=False, counts=False).collect():
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples += family.samples
        yield from families.values()
        yield from self._itself()

    def _itself(self) -> Iterator[Metric]:
        state = self._state()
        runs = GaugeMetricFamily("stabwatch_service_runs", "Runs below the folder of the service.", labels=["state"])
        for name, count in sorted(state.states.items()):
            runs.add_metric([name], count)
        yield runs
        yield GaugeMetricFamily(
            "stabwatch_service_heartbeat_timestamp_seconds",
            "When the service last looked at all runs, in seconds since the epoch.",
            value=time.time() - state.polled,
        )
        yield CounterMetricFamily("stabwatch_service_errors", "Errors in the service.", value=state.errors)


def _always(snapshot: Snapshot) -> Callable[[], Snapshot]:
    return lambda: snapshot


def snapshot_of(run: ListedRun, row: Row, name: str) -> Snapshot:
    """The newest numbers of a run that goes on. name: its label, which no other run has."""
    values = [(SeriesKey(signal), value) for signal, value in run.latest.items() if not declared(signal).counter]
    last = np.array([value for _, value in values])
    return Snapshot(
        run=name,
        info=info_labels(run.meta) if run.meta else (),
        state=row["state"],
        step=run.step,
        time=run.time,
        keys=tuple(key for key, _ in values),
        last=last,
        window=last,
        totals=np.zeros(len(values)),
        nonfinite=(~np.isfinite(last)).astype(np.int64),
        firing=tuple(run.firing),
    )


def names_of(rows: Sequence[Row]) -> dict[str, str]:
    """The label of each run by its identifier: its name, or the identifier where an older run has that name."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for row in sorted(rows, key=lambda r: (r["created"] or 0.0, r["id"])):
        found[row["id"]] = row["id"] if row["name"] in taken else row["name"]
        taken.add(row["name"])
    return found
