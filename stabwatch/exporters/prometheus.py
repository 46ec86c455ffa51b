"""Prometheus: a collector over an immutable snapshot, so that a scrape never waits for anything.

Names on /metrics, all with the label `run`:

    stabwatch_<signal>{layer}               last value of a gauge; absent while the last value was NaN or infinite
    stabwatch_<signal>_window_max{layer}    its worst finite value of the last 60 s or so (`_window_min` where low
                                            values are bad); a scrape resets nothing, so any number of
                                            servers may scrape at any interval up to a minute and see each spike
    stabwatch_<signal>_total{layer}         a counter, accumulated since the run began
    stabwatch_<derived>{layer}              derived signals, which the rules compare: trend, robust z-score
    stabwatch_logged_<name>{name}           a number of `watch.log`; the label has its name unchanged
    stabwatch_alerts_firing{rule,severity,layer}   1 while it fires; 0 with an empty layer for any other rule
    stabwatch_alert_info{rule,layer,onset,rank,batch}, stabwatch_alert_value{rule,layer}   of an alert that fires
    stabwatch_rule_violations_total{rule,layer}    times that a rule began to fire or its severity rose
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stabwatch.exporters.declared import Declared, declared_series
from stabwatch.runlog import SeriesKey

STATES = ("running", "finished", "exception", "killed")


@dataclass(frozen=True)
class AlertDetail:
    """What is known of an alert that fires. rank, batch: '' if not known."""

    rule: str
    layer: str
    onset: int
    value: float | None
    rank: str = ""
    batch: str = ""


@dataclass(frozen=True)
class Snapshot:
    """The content of one scrape. Immutable; arrays are aligned with `keys`.

    last, window: gauges, NaN where there is nothing finite to show. totals: counters.
    nonfinite: how many measured values of each series were NaN or infinite.
    firing: (rule, severity, layer). details: of some of them. violations: times each (rule, layer) began to fire.
    """

    run: str
    info: tuple[tuple[str, str], ...] = ()
    state: str = "running"
    step: int | None = None
    time: float | None = None
    keys: tuple[SeriesKey, ...] = ()
    last: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    window: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    totals: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    nonfinite: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    derived: tuple[tuple[SeriesKey, float], ...] = ()
    firing: tuple[tuple[str, str, str], ...] = ()
    details: tuple[AlertDetail, ...] = ()
    violations: tuple[tuple[str, str, int], ...] = ()
    agent_errors: int = 0
    series_dropped: int = 0


@dataclass(frozen=True)
class DerivedMetric:
    """The declaration of a derived signal."""

    name: str
    help: str


class RunCollector(Collector):
    """Turns the newest snapshot into metric families.

    snapshot: returns the newest snapshot immediately. derived: all derived signals. rules: (name, severity) of every
    rule; a rule that never fired is exported as 0. signals: False where `SignalText` writes signals and
    derived signals. counts: False where not the whole log was read, so that counters are not known. A family that
    cannot be built is left out and counted.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        derived: Iterable[DerivedMetric] = (),
        rules: Iterable[tuple[str, str]] = (),
        signals: bool = True,
        counts: bool = True,
    ) -> None:
        self._snapshot = snapshot
        self._signals = signals
        self._counts = counts
        self._derived = {d.name: d for d in derived}
        self._rules = tuple(rules)
        self._errors = 0
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Empty, because the names depend on the run."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape."""
        snapshot = self._snapshot()
        signals = (signal_families, self._derived_families) if self._signals else ()
        counts = (self._violations, _nonfinite) if self._counts else ()
        for build in (_run, _state, _progress, *signals, self._firing, _details, *counts):
            try:
                yield from list(build(snapshot))
            except Exception:
                with self._lock:
                    self._errors += 1
        if self._counts:
            yield from self._itself(snapshot)

    def _derived_families(self, s: Snapshot) -> Iterator[Metric]:
        return derived_families(s, self._derived)

    def _firing(self, s: Snapshot) -> Iterator[Metric]:
        firing = GaugeMetricFamily(
            "stabwatch_alerts_firing",
            "Whether a rule fires, by layer; 0 with an empty layer for a rule that does not fire.",
            labels=["run", "rule", "severity", "layer"],
        )
        firing_rules = {rule for rule, _, _ in s.firing}
        rows = [*s.firing, *((rule, severity, "") for rule, severity in self._rules if rule not in firing_rules)]
        for rule, severity, layer in sorted(rows):
            firing.add_metric([clean(s.run), rule, severity, clean(layer)], float(rule in firing_rules))
        yield firing

    def _violations(self, s: Snapshot) -> Iterator[Metric]:
        counts = {(rule, ""): 0 for rule, _ in self._rules}
        counts.update({(rule, layer): n for rule, layer, n in s.violations})
        violations = CounterMetricFamily(
            "stabwatch_rule_violations",
            "Times that a rule began to fire or its severity rose, by layer.",
            labels=["run", "rule", "layer"],
        )
        for (rule, layer), n in sorted(counts.items()):
            violations.add_metric([clean(s.run), rule, clean(layer)], n)
        yield violations

    def _itself(self, s: Snapshot) -> Iterator[Metric]:
        counts = (
            ("collect_errors", "Metric families that could not be built at a scrape.", self._errors),
            (
                "agent_errors",
                "Errors in the agent: following the run log, or sending alerts.",
                s.agent_errors,
            ),
            ("series_dropped", "Series that are not exported because the agent's limit was reached.", s.series_dropped),
        )
        for name, text, value in counts:
            family = CounterMetricFamily(f"stabwatch_{name}", text, labels=["run"])
            family.add_metric([clean(s.run)], value)
            yield family


def clean(text: str) -> str:
    """Text that UTF-8 can encode: a lone surrogate from a hostile log must not break a scrape."""
    return text.encode("utf-8", "replace").decode()


def _gauge(name: str, text: str, labels: Sequence[str] = ("run",)) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _labels(s: Snapshot, key: SeriesKey, labels: Sequence[str]) -> list[str]:
    return [clean(s.run), clean(key.layer)][: len(labels)]


def _run(s: Snapshot) -> Iterator[Metric]:
    info = {"run": s.run, **dict(s.info)}
    yield InfoMetricFamily("stabwatch_run", "Metadata of the run.", {k: clean(v) for k, v in info.items()})


def _state(s: Snapshot) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "stabwatch_run_state", "1 for the present state of the training process.", labels=["run", "state"]
    )
    for state in dict.fromkeys((*STATES, s.state)):
        family.add_metric([clean(s.run), clean(state)], float(state == s.state))
    yield family


def _progress(s: Snapshot) -> Iterator[Metric]:
    if s.step is None or s.time is None:
        return
    for name, text, value in (
        ("stabwatch_step", "Last step in the run log.", float(s.step)),
        ("stabwatch_last_step_timestamp_seconds", "End of the last step, in seconds since the epoch.", s.time),
    ):
        family = _gauge(name, text)
        family.add_metric([clean(s.run)], value)
        yield family


def signal_families(s: Snapshot) -> Iterator[Metric]:
    """Families by metric name: numbers of `watch.log` with similar names may share one."""
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for i, key in enumerate(s.keys):
        d = declared_series(key)
        labels = _labels(s, key, d.labels)
        if d.counter:
            _family(families, d.metric, d.help, d).add_metric(labels, float(s.totals[i]))
            continue
        _add(_family(families, d.metric, d.help, d), labels, s.last[i])
        if d.worst:
            end = "Largest" if d.worst == "max" else "Smallest"
            text = f"{end} value of {d.metric} in the last 60 seconds."
            _add(_family(families, d.window_metric, text, d), labels, s.window[i])
    yield from families.values()


def derived_families(s: Snapshot, declared: Mapping[str, DerivedMetric]) -> Iterator[Metric]:
    """The derived signals of a snapshot."""
    values: dict[str, list[tuple[SeriesKey, float]]] = {}
    for key, value in s.derived:
        values.setdefault(key.signal, []).append((key, value))
    for name, members in values.items():
        labels = ("run", "layer") if any(key.layer for key, _ in members) else ("run",)
        family = _gauge(f"stabwatch_{name}", declared[name].help, labels)
        for key, value in members:
            if np.isfinite(value):
                family.add_metric(_labels(s, key, labels), value)
        yield family


def _family(
    families: dict[str, GaugeMetricFamily | CounterMetricFamily], name: str, text: str, d: Declared
) -> GaugeMetricFamily | CounterMetricFamily:
    if name not in families:
        counter = CounterMetricFamily(name.removesuffix("_total"), text, labels=d.labels) if d.counter else None
        families[name] = counter or _gauge(name, text, d.labels)
    return families[name]


def _add(family: GaugeMetricFamily | CounterMetricFamily, labels: list[str], value: float) -> None:
    if np.isfinite(value):
        family.add_metric(labels, float(f"{value:.7g}"))  # the log has float32


def _details(s: Snapshot) -> Iterator[Metric]:
    if not s.details:
        return
    labels = ["run", "rule", "layer"]
    info = GaugeMetricFamily(
        "stabwatch_alert_info", "What is known of an alert that fires.", labels=[*labels, "onset", "rank", "batch"]
    )
    values = GaugeMetricFamily("stabwatch_alert_value", "The number that an alert fired on.", labels=labels)
    for d in s.details:
        which = [clean(s.run), d.rule, clean(d.layer)]
        info.add_metric([*which, str(d.onset), d.rank, clean(d.batch)], 1.0)
        if d.value is not None and np.isfinite(d.value):
            values.add_metric(which, d.value)
    yield info
    yield values


def _nonfinite(s: Snapshot) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "stabwatch_values_nonfinite",
        "Values of a signal that were NaN or infinite, over all layers; gauges leave them out.",
        labels=["run", "signal"],
    )
    counts: dict[str, int] = {}
    for key, n in zip(s.keys, s.nonfinite.tolist(), strict=True):
        d = declared_series(key)
        if not d.counter:
            signal = d.metric.removeprefix("stabwatch_")
            counts[signal] = counts.get(signal, 0) + n
    for signal, n in counts.items():
        family.add_metric([clean(s.run), clean(signal)], n)
    yield family
