"""What `stabwatch top` shows, as data: it tails a run log, runs the rules, and keeps the recent past of each series."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stabwatch.agent.process import ProcessWatch
from stabwatch.alerts import Alert, Engine, diagnose
from stabwatch.alerts.incidents import rank
from stabwatch.runlog import Event, Meta, RecordBatch, RunLog, SeriesKey

RECENT = 600
"""Measured values that a trend covers."""
QUIET = 10.0
"""Times the usual step time without a record after which the header says how long it has been."""

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
"""Signal whose past a layer shows: the first of these that it has."""
RUN_SIGNALS = ("loss", "gradient_norm", "learning_rate", "step_seconds", "overhead_ratio")


@dataclass(frozen=True)
class LayerRow:
    """One layer: last measured value by signal (None: not yet), the recent past of one of them, worst severity
    by column. A value is NaN when the tensor was."""

    name: str
    values: dict[str, float | None]
    trend: tuple[float, ...]
    alarm: dict[str, str]


@dataclass(frozen=True)
class LiveView:
    """One picture of a run. `values` and `loss` are the run's own signals; times are seconds since the epoch."""

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
    """Alerts raised so far, resolved ones too."""
    layers: tuple[LayerRow, ...]


@dataclass
class _Past:
    last: float | None = None
    values: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class Monitor:
    """Follows one run. `poll` reads what is new; `frame` draws the conclusion.

    Raises RunLogError when the folder is not a run.
    """

    def __init__(self, run: Path) -> None:
        self.log = RunLog(run)
        self._process = ProcessWatch(self.log.meta)
        self.engine = Engine()
        self._past: dict[SeriesKey, _Past] = {}
        self._layers: dict[str, None] = {}
        self._step: int | None = None
        self._last: float | None = None
        self._end: Event | None = None

    def poll(self, now: float) -> None:
        """Take in new records and events, and let time pass for the rules."""
        blocks, events = self.log.poll(), self.log.poll_events()
        for change in (e for e in events if e.kind == "change"):
            self.engine.observe_event(change)
        for block in blocks:
            self.engine.observe(block)
            self._keep(block)
        for event in (e for e in events if e.kind != "change"):
            self.engine.observe_event(event)
            if event.kind in ("start", "end"):  # a run may go on in the same folder
                self._end = event if event.kind == "end" else None
        if self._end is None:
            self.engine.tick(now)

    def _keep(self, block: RecordBatch) -> None:
        if not len(block):
            return
        shown = {key.layer for key in block.table.keys if key.signal in COLUMNS}
        self._layers.update(dict.fromkeys(cell.site for cell in block.table.cells if cell.site in shown))
        self._step, self._last = int(block.steps[-1]), float(block.times[-1])
        for key, column, was in zip(block.table.keys, block.values.T, block.measured.T, strict=True):
            past = self._past.setdefault(key, _Past())
            seen = column[was].tolist()
            past.last = seen[-1] if seen else past.last
            if key.signal in TRENDS or key.signal == "loss":
                past.values.extend(seen)

    def frame(self, now: float) -> LiveView:
        """The picture at `now`."""
        alerts = tuple(self.engine.active)
        return LiveView(
            meta=self.log.meta,
            state=self._state(now),
            step=self._step,
            last=self._last,
            now=now,
            values={
                name: past.last
                for name in RUN_SIGNALS
                if (past := self._past.get(SeriesKey(name))) and past.last is not None
            },
            loss=tuple(self._past[SeriesKey("loss")].values) if SeriesKey("loss") in self._past else (),
            verdict=diagnose(self.engine).verdict,
            alerts=alerts,
            current={key: self._current(key) for key in (SeriesKey(a.signal, a.layer) for a in alerts)},
            fired=sum(alert.state == "firing" for alert in self.engine.history),
            layers=tuple(self._row(name, alerts) for name in self._layers),
        )

    def _current(self, key: SeriesKey) -> float | None:
        return self._past[key].last if key in self._past else self.engine.derived.get(key)

    def _state(self, now: float) -> str:
        if self._end is not None:
            return str(self._end.data.get("reason", "ended"))
        quiet = now - (self._last or self.log.meta.created)
        if self._process.gone(quiet) is not None:
            return "gone"
        usual = self._past.get(SeriesKey("step_seconds"))
        limit = max(5.0, QUIET * usual.last) if usual and usual.last else 60.0
        return "silent" if quiet > limit else "training"

    def _row(self, name: str, alerts: Iterable[Alert]) -> LayerRow:
        mine = {signal: past for signal in COLUMNS if (past := self._past.get(SeriesKey(signal, name)))}
        alarm: dict[str, str] = {}
        for alert in alerts:
            if alert.layer == name:
                column = COLUMNS.get(alert.signal, "attention" if alert.signal.startswith("attention_") else "layer")
                alarm[column] = min(alarm.get(column, "info"), alert.severity, key=rank)
        trend = next((tuple(mine[signal].values) for signal in TRENDS if signal in mine), ())
        return LayerRow(name, {signal: past.last for signal, past in mine.items()}, trend, alarm)
