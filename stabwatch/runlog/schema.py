"""The content of a run folder, and the record layout, which describes each number of a record.

    RUN/
      meta.json             Meta: written once at the start
      signals-000.arrows    Arrow IPC stream: step, time, values; a new segment when the layout changes
      events.jsonl          one JSON object a line: start, end, alerts, notes, errors
      labels.json           name, tags and notes, if they were changed after the start
      stacks/               of a job that hangs or failed: where its ranks were (`stacks.py`)

A record's `values` is a list of float32, one per column. The columns are the fields of the accumulators in the order of
the record layout, which is stored as JSON in the stream's schema metadata under `stabwatch`. NaN in all columns of an
accumulator means that it was not measured at this step. What every step measures comes first, and the list ends after
the last number: columns beyond its end were not measured. The layout also lists the series (signal x layer), each with
its formula and its columns, so that other tools can compute the values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stabwatch.signals import CATALOGUE, Catalogue
from stabwatch.signals.formulas import FORMULAS, evaluate
from stabwatch.signals.reductions import IDENTITY, REDUCTIONS, MergeOperators, Op

SCHEMA_VERSION = 3
FIXED_WIDTH = 2
"""The schema whose records have all columns, also those that were not measured. It is still read."""
READABLE_VERSIONS = (FIXED_WIDTH, SCHEMA_VERSION)
READABLE = " and ".join(map(str, READABLE_VERSIONS))
META = "meta.json"
EVENTS = "events.jsonl"
LEASE = "agent.lock"
"""Made by the first agent that evaluates the rules on a run, and locked by the one that does so now."""
TARGETS = "targets"
"""Folder beside the runs, with a target file of Prometheus for each."""
SEGMENTS = "signals-*.arrows"
_FEW = 8
"""Fields whose sum does not depend on their layout in memory: NumPy adds fewer than eight one after the other."""


@dataclass(frozen=True, order=True, slots=True)
class SeriesKey:
    """The key of a series: a signal, and the layer where it was measured ('' for the whole run)."""

    signal: str
    layer: str = ""

    def __str__(self) -> str:
        return f"{self.signal}[{self.layer}]" if self.layer else self.signal


class Accumulator(NamedTuple):
    """One reduction at one site: some consecutive columns of a record. A large model has tens of thousands."""

    tap: str
    site: str
    reduction: str


@dataclass(frozen=True, slots=True)
class Series:
    """How a series is computed from columns."""

    key: SeriesKey
    formula: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class RecordLayout:
    """The layout of a record: accumulators in order, each with the fields of its reduction.

    In a layout from a file, the fields come from the file and not from the present code.
    """

    accumulators: tuple[Accumulator, ...]
    fields: tuple[tuple[tuple[str, Op], ...], ...]
    series: tuple[Series, ...]

    @classmethod
    def build(
        cls, accumulators: Iterable[Accumulator], catalogue: Catalogue = CATALOGUE, without: Container[str] = ()
    ) -> RecordLayout:
        """Lay out accumulators in the given order, with the series of the catalogue but for the signals `without`."""
        bare = cls.without_series(accumulators)
        groups: dict[tuple[str, str], list[tuple[Accumulator, int]]] = {}
        for accumulator, start in zip(bare.accumulators, bare.starts, strict=True):
            groups.setdefault((accumulator.tap, accumulator.reduction), []).append((accumulator, start))
        series: list[Series] = []
        for signal in catalogue:
            group = [] if signal.name in without else groups.get((signal.tap, signal.reduction), [])
            if signal.tap == "host":
                group = [(accumulator, start) for accumulator, start in group if accumulator.site == signal.name]
            if not group:
                continue
            offsets = [REDUCTIONS[signal.reduction].index(f) for f in signal.fields]
            starts = np.array([start for _, start in group])
            indices = zip(*((starts + offset).tolist() for offset in offsets), strict=True)
            if signal.scope == "layer":
                keys = (SeriesKey(signal.name, accumulator.site) for accumulator, _ in group)
                series += map(Series, keys, repeat(signal.formula), indices)
            else:
                assert len(group) == 1 or len(offsets) == 1, f"{signal.name}: several cells, several fields"
                series.append(Series(SeriesKey(signal.name), signal.formula, tuple(chain.from_iterable(indices))))
        return cls(bare.accumulators, bare.fields, tuple(series))

    @classmethod
    def without_series(cls, accumulators: Iterable[Accumulator]) -> RecordLayout:
        """Lay out accumulators in the given order: a row that is merged, and whose values nobody reads."""
        accumulators = tuple(dict.fromkeys(accumulators))
        fields = {name: tuple((f.name, f.op) for f in reduction.fields) for name, reduction in REDUCTIONS.items()}
        return cls(accumulators, tuple(fields[c.reduction] for c in accumulators), ())

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First column of each accumulator."""
        return tuple(int(n) for n in np.cumsum([0, *(len(f) for f in self.fields)])[:-1])

    @cached_property
    def width(self) -> int:
        """Number of columns."""
        return sum(len(f) for f in self.fields)

    @cached_property
    def operators(self) -> MergeOperators:
        """The merge operators of a whole record."""
        ops = [op for fields in self.fields for _, op in fields]
        accumulators = [i for i, fields in enumerate(self.fields) for _ in fields]
        return MergeOperators(ops, accumulators)

    @cached_property
    def keys(self) -> tuple[SeriesKey, ...]:
        """Keys of the series, in order."""
        return tuple(s.key for s in self.series)

    @cached_property
    def place(self) -> dict[SeriesKey, int]:
        """Number of each series, by key."""
        return {key: i for i, key in reversed(tuple(enumerate(self.keys)))}  # the first, where a file has one twice

    @cached_property
    def of_run(self) -> RecordLayout:
        """The same record with the series of the whole run only."""
        return replace(self, series=tuple(s for s in self.series if not s.key.layer))

    def start(self, accumulator: Accumulator) -> int:
        """First column of an accumulator."""
        return self.starts[self._position[accumulator]]

    @cached_property
    def _position(self) -> dict[Accumulator, int]:
        return {accumulator: i for i, accumulator in enumerate(self.accumulators)}

    @cached_property
    def _plan(self) -> list[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
        groups: dict[tuple[str, int], list[int]] = {}
        for i, s in enumerate(self.series):
            groups.setdefault((s.formula, len(s.indices)), []).append(i)
        return [
            (formula, np.array(members), np.array([self.series[i].indices for i in members]))
            for (formula, _), members in groups.items()
        ]

    def values(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Values of the series, (..., len(series)), from rows (..., width); NaN where not measured."""
        rows = np.asarray(rows)
        out = np.full((*rows.shape[:-1], len(self.series)), np.nan)
        for formula, members, indices in self._plan:
            if indices.shape[1] < _FEW:  # each field in a row of memory: the same sums, with less to skip
                fields = np.stack([np.take(rows, columns, axis=-1) for columns in indices.T])
                out[..., members] = evaluate(formula, np.moveaxis(fields, 0, -1))
            else:
                out[..., members] = evaluate(formula, rows[..., indices])
        return out

    @cached_property
    def _counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count columns of the accumulators of each series, concatenated, and the start of each series."""
        starts = np.array(self.starts)
        accumulators = [np.unique(np.searchsorted(starts, s.indices, side="right") - 1) for s in self.series]
        offsets = np.cumsum([0, *(len(c) for c in accumulators)])[:-1]
        return starts[np.concatenate(accumulators)] if accumulators else np.empty(0, np.int64), offsets

    def measured(self, rows: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each series was measured, (n, len(series)), from rows (n, width). A measured value may be NaN."""
        counts, offsets = self._counts
        if not len(counts):
            return np.zeros((len(rows), 0), dtype=bool)
        return np.logical_or.reduceat(np.asarray(rows)[:, counts] > 0, offsets, axis=1)

    def to_json(self) -> str:
        """The layout as stored in the schema metadata."""
        quoted = cache(partial(json.dumps, separators=(",", ":")))  # names recur; a dict of each would be slow garbage
        accumulators = (
            f'{{"tap":{quoted(c.tap)},"site":{quoted(c.site)},"reduction":{quoted(c.reduction)},"fields":{quoted(f)}}}'
            for c, f in zip(self.accumulators, self.fields, strict=True)
        )
        series = (
            f'{{"signal":{quoted(s.key.signal)},"layer":{quoted(s.key.layer)},"formula":{quoted(s.formula)},'
            f'"indices":[{",".join(map(str, s.indices))}]}}'
            for s in self.series
        )
        return f'{{"schema":{SCHEMA_VERSION},"accumulators":[{",".join(accumulators)}],"series":[{",".join(series)}]}}'

    @classmethod
    def from_json(cls, text: str | bytes) -> RecordLayout:
        """Inverse of `to_json`."""
        d = json.loads(text)
        return cls(
            tuple(Accumulator(c["tap"], c["site"], c["reduction"]) for c in d["accumulators"]),
            tuple(tuple((name, op) for name, op in c["fields"]) for c in d["accumulators"]),
            tuple(Series(SeriesKey(s["signal"], s["layer"]), s["formula"], tuple(s["indices"])) for s in d["series"]),
        )

    def check(self) -> None:
        """Raise ValueError if a layout from a file is inconsistent or needs newer code."""
        if not self.width:
            raise ValueError("a layout needs at least one field")
        for name, op in (pair for fields in {id(f): f for f in self.fields}.values() for pair in fields):
            if op not in IDENTITY:
                raise ValueError(f"field {name!r} has the unknown merge operator {op!r}")
        for s in self.series:
            if s.formula not in FORMULAS:
                raise ValueError(f"{s.key} has the unknown formula {s.formula!r}")
            if not s.indices or min(s.indices) < 0 or max(s.indices) >= self.width:
                raise ValueError(f"{s.key} names the fields {s.indices}, and there are {self.width}")


def host_accumulator(signal: str) -> Accumulator:
    """The accumulator of a signal that is one host number per step."""
    return Accumulator("host", signal, CATALOGUE[signal].reduction)


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Metadata of a run."""

    run: str
    created: float
    host: str
    pid: int
    pid_started: float
    """Start time of the process (seconds since the epoch), to detect a reused pid."""
    world_size: int = 1
    rank: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    """`name`, `parameters` (count), `layers` (sites in forward order)."""
    config: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    """What people call the run. `name`, `tags` and `notes` may be changed later: see `labels.py`."""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    signals: list[dict[str, Any]] = field(default_factory=list)
    """Declarations of the signals that are not in the catalogue: the fields of `stabwatch.signals.Signal`."""
    schema: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Text of meta.json."""
        return json.dumps(asdict(self), indent=1)


GOOD_ENDS = ("finished", "interrupted", "replaced")
"""Reasons of an end event that are no failure: interrupted by Ctrl-C, replaced by another watch of the same model."""


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl.

    kind: 'start', 'end', 'note', 'error', 'coverage', 'agent', 'alert', 'flight', 'guard', 'optimizer',
        'change', 'ranks', 'sink', 'nonfinite', 'unstepped', 'snapshot'.
    data: everything else on the line. 'optimizer' has `name` and `groups` (settings of each distinct group), after its
    first step; 'end' has `reason` ('finished', 'interrupted', 'replaced', 'exception', 'killed', ...);
    'alert' has the fields of `stabwatch.alerts.Alert`; 'flight' the `batches` of the steps around the onset of one
    (`step` and, where known, `indices`, `fingerprint`, `first` token ids, `shape`, `dtype`); 'guard' what a
    guard did; 'change' the `what` of a change announced for this step, and it comes before its record (`seen`: a
    change of the model, which the watch has seen itself);
    'unstepped' where gradients are computed and no optimizer steps (any more), `what` in words;
    'nonfinite' where a value that is not finite was made: `place` ('data', 'weights', 'forward', 'loss', 'gradient',
    'update', 'buffer' or 'unknown'), step `since`, `layers`, `after`, `loss` of that step ('nan', 'inf'), `batches`;
    'ranks' says that records from step `since` on cover `covered` of `world` ranks, and which are `missing` (`rank` and
    `reason` of the first few);
    'snapshot' says of the snapshots with other ranks what was `did`: 'kept', 'not kept', 'note', 'restored' or
    'not restored', and `why`;
    'sink' says of the live sink `sink` that it failed, with a `message`.
    """

    kind: str
    time: float
    step: int | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The line without its end. Numbers that JSON cannot represent become null."""
        line = {"kind": self.kind, "time": self.time, "step": self.step, **self.data}
        return json.dumps(plain(line), default=str)

    @classmethod
    def from_json(cls, line: str | bytes) -> Event:
        """Inverse of `to_json`."""
        d = json.loads(line)
        if not isinstance(d, dict):
            raise ValueError("an event is a JSON object")
        kind, when, step = str(d.pop("kind")), float(d.pop("time")), d.pop("step", None)
        if not math.isfinite(when):
            raise ValueError("the time of an event is a number")
        return cls(kind, when, step if isinstance(step, int) else None, d)


def plain(data: Any) -> Any:
    """The same data with None for every number that JSON cannot represent."""
    if isinstance(data, dict):
        return {k: plain(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@dataclass(frozen=True)
class RecordBatch:
    """Consecutive records of one layout.

    steps: int64 (n,). times: float64 (n,), seconds since the epoch. rows: float32 (n, table.width).
    """

    layout: RecordLayout
    steps: NDArray[np.int64]
    times: NDArray[np.float64]
    rows: NDArray[np.float32]

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """float64 (n, len(table.series)): the signals."""
        return self.layout.values(self.rows)

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """(n, len(table.series)): whether it was measured. A measured value may be NaN."""
        return self.layout.measured(self.rows)

    def __len__(self) -> int:
        return len(self.steps)


def segments_of(run: Path) -> list[Path]:
    """The segments of a run folder, in the order of writing."""
    return sorted(run.glob(SEGMENTS), key=lambda path: (len(path.name), path.name))


def common_series(layouts: Sequence[RecordLayout]) -> tuple[SeriesKey, ...]:
    """All series of several layouts, in order of first appearance."""
    return tuple(dict.fromkeys(key for layout in layouts for key in layout.keys))
