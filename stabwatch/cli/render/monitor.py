"""The data of `stabwatch top`: follows a run log, evaluates the rules, and keeps the recent values of each series."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stabwatch.alerts import Alert, Engine, diagnose
from stabwatch.alerts.incidents import rank
from stabwatch.runlog import Event, Meta, RecordBatch, RunLog, SeriesKey
from stabwatch.runlog.process import ProcessWatch

RECENT = 600
"""Number of measured values in a trend."""
STALE = 10.0
"""Multiple of the usual step time without a record after which the header shows the time since the last one."""

COLUMNS = {
    "attention_logit_lower": "attention",
    "attention_logit_upper": "attention",
    "attention_logit_max": "exact",
    "output_rms": "output_rms",
    "activation_abs_max": "abs_max",
    "layer_gradient_norm": "gradient",
    "update_to_weight_ratio": "update",
}
"""Column of the layer table by signal."""
TRENDS = ("attention_logit_lower", "activation_abs_max", "layer_gradient_norm")
"""The trend of a layer is that of the first of these signals that it has."""
RUN_SIGNALS = ("loss", "gradient_norm", "learning_rate", "step_seconds", "overhead_ratio")


@dataclass(frozen=True)
class LayerRow:
    """One layer: last measured value by signal (None: none yet), recent values of one signal, worst severity by column.

    A value is NaN when the measured value was NaN.
    """

    name: str
    values: dict[str, float | None]
    trend: tuple[float, ...]
    severities: dict[str, str]


@dataclass(frozen=True)
class LiveView:
    """The state of a run. `values` and `loss` are run-scope signals; times are in seconds since the epoch."""

    meta: Meta
    state: str
    step: int | None
    last: float | None
    now: float
    values: dict[str, float]
    loss: tuple[float, ...]
    verdict: str
    alerts: tuple[Alert, ...]
    current: dict[SeriesKey, float | None]
    """Last value of the series that alerts are on."""
    fired: int
    """Number of alerts so far, including resolved ones."""
    layers: tuple[LayerRow, ...]


@dataclass
class _Series:
    last: float | None = None
    values: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class Monitor:
    """Follows one run. `poll` reads new records; `view` returns the state. Raises RunLogError."""

    def __init__(self, run: Path) -> None:
        self.log = RunLog(run)
        self._process = ProcessWatch(self.log.meta)
        self.engine = Engine()
        self._series: dict[SeriesKey, _Series] = {}
        self._layers: dict[str, None] = {}
        self._step: int | None = None
        self._last: float | None = None
        self._end: Event | None = None
        self._waiting: list[Event] = []

    def poll(self, now: float) -> None:
        """Read new records and events, and advance the clock of the rules."""
        events, blocks, newer = self._waiting + self.log.poll_events(), self.log.poll(), self.log.poll_events()
        self._waiting = [e for e in newer if e.kind != "change"]  # records may have been written before them
        for change in (e for e in (*events, *newer) if e.kind == "change"):
            self.engine.observe_event(change)
        for block in blocks:
            self.engine.observe(block)
            self._keep(block)
        for event in (e for e in events if e.kind != "change"):
            self.engine.observe_event(event)
            if event.kind in ("start", "end"):  # a run may continue in the same folder
                self._end = event if event.kind == "end" else None
        if self._end is None:
            self.engine.tick(now)

    def _keep(self, block: RecordBatch) -> None:
        if not len(block):
            return
        shown = {key.layer for key in block.layout.keys if key.signal in COLUMNS}
        self._layers.update(dict.fromkeys(a.site for a in block.layout.accumulators if a.site in shown))
        self._step, self._last = int(block.steps[-1]), float(block.times[-1])
        for key, column, was in zip(block.layout.keys, block.values.T, block.measured.T, strict=True):
            series = self._series.setdefault(key, _Series())
            seen = column[was].tolist()
            series.last = seen[-1] if seen else series.last
            if key.signal in TRENDS or key.signal == "loss":
                series.values.extend(seen)

    def view(self, now: float) -> LiveView:
        """The state at `now`."""
        alerts = tuple(self.engine.active)
        return LiveView(
            meta=self.log.meta,
            state=self._state(now),
            step=self._step,
            last=self._last,
            now=now,
            values={
                name: series.last
                for name in RUN_SIGNALS
                if (series := self._series.get(SeriesKey(name))) and series.last is not None
            },
            loss=tuple(self._series[SeriesKey("loss")].values) if SeriesKey("loss") in self._series else (),
            verdict=diagnose(self.engine).verdict,
            alerts=alerts,
            current={key: self._current(key) for key in (SeriesKey(a.signal, a.layer) for a in alerts)},
            fired=sum(alert.state == "firing" for alert in self.engine.history),
            layers=tuple(self._row(name, alerts) for name in self._layers),
        )

    def _current(self, key: SeriesKey) -> float | None:
        return self._series[key].last if key in self._series else self.engine.derived.get(key)

    def _state(self, now: float) -> str:
        if self._end is not None:
            return str(self._end.data.get("reason", "ended"))
        since = now - (self._last or self.log.meta.created)
        if self._process.gone(since) is not None:
            return "gone"
        usual = self._series.get(SeriesKey("step_seconds"))
        limit = max(5.0, STALE * usual.last) if usual and usual.last else 60.0
        return "stalled" if since > limit else "training"

    def _row(self, name: str, alerts: Iterable[Alert]) -> LayerRow:
        mine = {signal: series for signal in COLUMNS if (series := self._series.get(SeriesKey(signal, name)))}
        severities: dict[str, str] = {}
        for alert in alerts:
            if alert.layer == name:
                column = COLUMNS.get(alert.signal, "attention" if alert.signal.startswith("attention_") else "layer")
                severities[column] = min(severities.get(column, "info"), alert.severity, key=rank)
        trend = next((tuple(mine[signal].values) for signal in TRENDS if signal in mine), ())
        return LayerRow(name, {signal: series.last for signal, series in mine.items()}, trend, severities)
