"""One recorded run as data frames."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stabwatch.analysis.query.columns import Columns, Layers, Points, is_wanted, layers_of, listed, meant
from stabwatch.analysis.query.frames import constant, frame
from stabwatch.analysis.readers.records import ForeignLog
from stabwatch.analysis.sources import open_source
from stabwatch.analysis.summaries import Summaries
from stabwatch.errors import RunLogError, SeriesError
from stabwatch.exporters.declared import adopt, own_name
from stabwatch.exporters.tables import stamps
from stabwatch.runlog import Event, RecordBatch, SeriesKey, plain
from stabwatch.runlog.attempts import Attempt, attempts, kept
from stabwatch.runlog.schema import common_series
from stabwatch.runlog.source import Source
from stabwatch.signals import CATALOGUE


def open_run(path: str | Path) -> RecordedRun:
    """Open a run log for reading; the run may still go on.

    Args:
        path: a run folder, a folder of runs (the newest is used), or another trainer's log with one run.

    Raises RunLogError and LogError if there is none that can be read.
    """
    return RecordedRun(path)


class RecordedRun:
    """A run log as data frames; `stabwatch.open_run` makes it.

    Each call reads the log as it is then. Steps that a later attempt of the run trained again are left out. The frames
    are pandas DataFrames, or Arrow tables where pandas is not installed or `arrow=True` is given.
    """

    def __init__(self, path: str | Path) -> None:
        first = _only_source(Path(path))
        self.path, self.meta = Path(path) if isinstance(first, ForeignLog) else first.path, first.meta
        adopt(self.meta.signals)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.meta.run

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that the log has columns for, and of the numbers of `watch.log`."""
        return tuple(dict.fromkeys(own_name(key).signal for key in common_series(self._source().layouts)))

    def __contains__(self, signal: object) -> bool:
        return signal in self.signals

    def series(
        self,
        signal: str,
        layer: Layers = None,
        *,
        head: int | None = None,
        rank: int | None = None,
        arrow: bool = False,
    ) -> Any:
        """The measured values of one signal, one row each.

        Args:
            signal: its name in docs/signals.md without `stabwatch_`, or the name of a number of `watch.log`.
            layer: name of a layer, a pattern such as `blocks.*.attn`, or several; all layers if left out.
            head: only values that belong to this head. The log keeps, of each layer, the largest value over heads and
                the head that it belongs to.
            rank: only values that belong to this rank: of signals that name a rank, or of a log that one rank wrote for
                itself (`reduce="never"`). All others are merged over ranks.
            arrow: return an Arrow table in any case.

        Returns a frame with the columns `run`, `path`, `step`, `time` (UTC), `signal`, `layer` ('' for the whole run),
        `head` or `rank` where the log keeps one (-1: it names none), and `value`, which may be NaN or infinite. A step
        at which the signal was not measured has no row.

        Raises SeriesError if the log has no such signal, layer, head or rank; the message says why.
        """
        source = self._source()
        superseded = self._attempts(source)
        found: dict[int, Columns] = {}
        pieces: list[Points] = []
        for batch in source.stream():
            if id(batch.layout) not in found:
                found[id(batch.layout)] = Columns(batch.layout, signal, layer)
            pieces.append(found[id(batch.layout)].points(kept(batch, superseded)))
        if not any(piece.steps.size for piece in pieces):
            raise SeriesError(self._why_empty(common_series(source.layouts), signal, layer))
        where = next((piece.where for piece in pieces if piece.where), "")
        points = self._filtered(_joined(pieces, where), signal, head, rank)
        return frame(self._table(points, signal), arrow)

    def summary(self, *, arrow: bool = False) -> Any:
        """One row for each measured series: signal, layer, unit, points, and first, last and extreme values."""
        summaries = Summaries()
        for batch in self._records():
            summaries.add(batch)
        rows = []
        for one in summaries.of_all():
            unit = CATALOGUE[one.signal].unit if one.signal in CATALOGUE else "1"
            rows.append({**asdict(one), **asdict(own_name(SeriesKey(one.signal, one.layer))), "unit": unit})
        names = ("signal", "layer", "unit", "points", "first", "last", "least", "largest", "largest_step", "nonfinite")
        return frame(pa.table({name: [row[name] for row in rows] for name in names}), arrow)

    def events(self, kind: str | None = None, *, arrow: bool = False) -> Any:
        """The events of the log: `time` (UTC), `step`, `kind`, and all else as JSON in `data`.

        kind: only these, such as 'alert', 'error' or 'change'.
        """
        events = [event for event in self._source().poll_events() if kind is None or event.kind == kind]
        table = pa.table(
            {
                "time": stamps(np.array([event.time for event in events], np.float64)),
                "step": pa.array([event.step for event in events], pa.int64()),
                "kind": pa.array([event.kind for event in events], pa.string()),
                "data": pa.array([json.dumps(plain(event.data), default=str) for event in events], pa.string()),
            }
        )
        return frame(table, arrow)

    def __repr__(self) -> str:
        return f"<stabwatch.RecordedRun {self.name}, {self.path}>"

    def _source(self) -> Source:
        return _only_source(self.path)

    def _attempts(self, source: Source) -> tuple[Attempt, ...]:
        return () if isinstance(source, ForeignLog) else attempts(self.path, source.poll_events())

    def _records(self) -> Iterator[RecordBatch]:
        source = self._source()
        superseded = self._attempts(source)
        return (kept(batch, superseded) for batch in source.stream())

    def _filtered(self, points: Points, signal: str, head: int | None, rank: int | None) -> Points:
        for name, wanted in (("head", head), ("rank", rank)):
            if wanted is None:
                continue
            if points.where == name:
                points = points.only(points.indices == wanted)
            elif name == "rank" and self._of_one_rank:
                if wanted != self.meta.rank:
                    raise SeriesError(
                        f"{self.path} is the log of rank {self.meta.rank}, and has nothing of rank {wanted}."
                    )
            else:
                raise SeriesError(self._merged(signal, name))
        return points

    @property
    def _of_one_rank(self) -> bool:
        return self.meta.world_size == 1 or self.meta.config.get("reduce") == "never"

    def _merged(self, signal: str, index: str) -> str:
        if index == "head":
            return f"`{signal}` is not kept by head: the log has one value of it for each layer and step."
        return (
            f'`{signal}` is merged over the {self.meta.world_size} ranks of this run. With `reduce="never"` each rank '
            "writes a log of its own."
        )

    def _table(self, points: Points, signal: str) -> pa.Table:
        length = len(points.steps)
        columns = {
            "run": constant(self.name, length),
            "path": constant(str(self.path), length),
            "step": pa.array(points.steps),
            "time": stamps(points.times),
            "signal": constant(signal, length),
            "layer": pa.array(points.layers, pa.string()).dictionary_encode(),
        }
        if points.where:
            columns[points.where] = pa.array(points.indices)
        return pa.table({**columns, "value": pa.array(points.values)})

    def _why_empty(self, keys: Sequence[SeriesKey], signal: str, layer: Layers) -> str:
        """Why the log has no value of a signal in some layers, in words."""
        layers = layers_of(keys, signal)
        if not layers:
            return self._unknown(signal)
        if any(is_wanted(name, layer) for name in layers):
            return f"`{signal}` was not measured at any recorded step of {self.path}.{self._reason(signal)}"
        asked = layer if isinstance(layer, str) else ", ".join(layer or ())
        close = meant(asked, layers)
        return f"`{signal}` has no layer {asked!r} in {self.path}.{close} It has: {listed(layers)}."

    def _unknown(self, signal: str) -> str:
        known = [*self.signals, *(s.name for s in CATALOGUE)]
        bare = signal.removeprefix("stabwatch_")
        if bare != signal and bare in known:
            return f"Signals are named without `stabwatch_` here: give {bare!r}."
        if signal in CATALOGUE:
            return f"{self.path} has no values of `{signal}`.{self._reason(signal)}"
        return f"{self.path} has no signal {signal!r}.{meant(signal, known)} `signals` lists those of the log."

    def _reason(self, signal: str) -> str:
        """What the last coverage report says of the tap of a signal; '' if it says nothing."""
        if signal not in CATALOGUE:
            return ""
        tap = CATALOGUE[signal].tap
        last: Event | None = next((e for e in reversed(self._source().poll_events()) if e.kind == "coverage"), None)
        entries = [] if last is None else [*_entries(last, "missing"), *_entries(last, "unmeasured")]
        reasons = dict.fromkeys(str(entry["reason"]) for entry in entries if entry.get("tap") == tap)
        return "".join(f" The log says: {reason}." for reason in list(reasons)[:1])


def _entries(event: Event, name: str) -> list[dict[str, Any]]:
    found = event.data.get(name)
    return (
        [entry for entry in found if isinstance(entry, dict) and "reason" in entry] if isinstance(found, list) else []
    )


def _only_source(path: Path) -> Source:
    found = open_source(path)
    if len(found) != 1:
        raise RunLogError(f"{path} has {len(found)} runs: `stabwatch.analysis.open_source` returns each.")
    return found[0]


def _joined(pieces: list[Points], where: str) -> Points:
    def column(name: str, kind: Any) -> Any:
        return np.concatenate([np.empty(0, kind), *(getattr(piece, name) for piece in pieces)])

    return Points(
        column("steps", np.int64), column("times", np.float64), column("layers", object), column("values", np.float64),
        where, column("indices", np.int64),
    )  # fmt: skip
