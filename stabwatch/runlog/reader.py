"""Reading a run folder, live or finished. An incomplete record at the end is ignored."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stabwatch.errors import RunLogError
from stabwatch.runlog.labels import changed_labels, labels_of
from stabwatch.runlog.mirror import local
from stabwatch.runlog.plain_file import plain_file
from stabwatch.runlog.schema import (
    EVENTS,
    META,
    READABLE,
    READABLE_VERSIONS,
    TARGETS,
    Event,
    Meta,
    RecordBatch,
    RecordLayout,
    SeriesKey,
    common_series,
    segments_of,
)
from stabwatch.runlog.segment import SegmentTail, Tail, UnreadableSegment

CHUNK = 8 << 20
"""Bytes of a segment in memory at a time while streaming."""


class RunLog:
    """A run folder, opened for reading. `poll` returns the records since the last call.

    Raises RunLogError when the folder has no readable meta.json or another schema version; so does `poll` when no
    segment is readable, or when one cannot be read at the moment: the next call goes on there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta = read_meta(self.path)
        self._segments: dict[Path, SegmentTail] = {}
        self._events = Tail(self.path / EVENTS)
        self.bad_event_lines = 0
        self.unreadable: dict[Path, str] = {}
        """Segments that are damaged or not stabwatch's, and what is wrong with them. The others are read."""

    @property
    def damaged_records(self) -> int:
        """Number of complete but unreadable records so far."""
        return sum(segment.damaged for segment in self._segments.values())

    @property
    def torn_bytes(self) -> int:
        """Bytes of incomplete records at the ends of segments, at the last poll."""
        return sum(segment.torn for segment in self._segments.values())

    def poll(self) -> list[RecordBatch]:
        """New records, in the order of writing."""
        return list(self.stream(-1))

    def stream(self, size: int = CHUNK) -> Iterator[RecordBatch]:
        """The same records as `poll`, about `size` bytes at a time, to need little memory."""
        for path in segments_of(self.path):
            if path not in self.unreadable:
                yield from self._read(self._segments.setdefault(path, SegmentTail(path)), size)
        if self.unreadable and not any(segment.layout for segment in self._segments.values()):
            raise RunLogError(next(iter(self.unreadable.values())))

    def _read(self, segment: SegmentTail, size: int) -> Iterator[RecordBatch]:
        try:
            if segment.path.is_symlink():
                raise UnreadableSegment(f"{segment.path} is a link.")
            if not segment.path.is_file():
                raise UnreadableSegment(f"{segment.path} is not a file.")
            if size < 0:
                block = segment.poll()
                yield from () if block is None else (block,)
            else:
                yield from segment.chunks(size)
        except UnreadableSegment as error:
            self.unreadable[segment.path] = str(error)

    @property
    def position(self) -> int:
        """Bytes of the segments that have been read."""
        return sum(segment.offset for segment in self._segments.values())

    @property
    def size(self) -> int:
        """Size of all segments in bytes."""
        return sum(path.stat().st_size for path in segments_of(self.path))

    @property
    def layouts(self) -> list[RecordLayout]:
        """The record layouts of all segments."""
        heads = [SegmentTail(path) for path in segments_of(self.path)]
        for head in heads:
            next(self._read(head, 1 << 16), None)
        return [head.layout for head in heads if head.layout is not None]

    def poll_events(self) -> list[Event]:
        """New events. An incomplete line is left for the next call; an invalid line is counted and skipped."""
        data = self._events.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._events.offset += len(whole)
        return list(self._parse(whole))

    def _parse(self, data: bytes) -> Iterator[Event]:
        for line in data.split(b"\n"):
            if not line:
                continue
            try:
                yield Event.from_json(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                self.bad_event_lines += 1


def read_meta(run: Path) -> Meta:
    """meta.json of a run folder, with the labels as they are now. Raises RunLogError."""
    path = run / META
    try:
        with open(path, encoding="utf-8", opener=plain_file) as file:
            data = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        is_there = f"it has no {META}" if run.is_dir() else "it is a file"
        where = is_there if run.exists() else "no such file or folder"
        raise RunLogError(
            f"{run} is not a run folder: {where}. Give the folder that `stabwatch.attach` printed."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunLogError(f"{path} cannot be read: {error}.") from error
    if not isinstance(data, dict) or data.get("schema") not in READABLE_VERSIONS:
        found = data.get("schema") if isinstance(data, dict) else None
        raise RunLogError(f"{path} has schema {found!r}, and this stabwatch reads {READABLE}.")
    known = {f.name for f in fields(Meta)}
    try:
        meta = Meta(**{k: v for k, v in data.items() if k in known})
    except TypeError as error:
        raise RunLogError(f"{path} is incomplete: {error}.") from error
    for field in fields(Meta):
        value = getattr(meta, field.name)
        if field.name in LABELLED or _fits(value, str(field.type)):
            continue
        if field.default_factory is MISSING:
            raise RunLogError(f"{path} is damaged: {field.name} is {str(value)[:40]!r}.")
        meta = replace(meta, **{field.name: field.default_factory()})  # what is only described there is not known
    return _labelled(run, meta)


LABELLED = ("name", "tags", "notes")
"""What `labels_of` checks."""
LONGEST = 1000
"""Characters of a name in meta.json."""
_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "dict": dict, "list": list}


def _fits(value: Any, kind: str) -> bool:
    """kind: a type as it is written."""
    finite = not isinstance(value, float) or math.isfinite(value)
    short = not isinstance(value, str) or len(value) <= LONGEST
    return finite and short and (isinstance(value, _TYPES[kind.partition("[")[0]]) or value in ([], {}))


def _labelled(run: Path, meta: Meta) -> Meta:
    """With the labels as they are now; those of the start where labels.json is damaged."""
    try:
        labels = changed_labels(run)
    except RunLogError:
        labels = None
    return (labels or labels_of(meta)).into(meta)


@dataclass(frozen=True)
class Run:
    """A run in memory: record batches in order, events, and series by key."""

    path: Path
    meta: Meta
    blocks: tuple[RecordBatch, ...]
    events: tuple[Event, ...] = ()
    damaged_records: int = 0
    """Records that were skipped because they could not be read."""
    torn_bytes: int = 0
    """Bytes of incomplete records at the ends of segments, from a crash or a full disk."""
    bad_event_lines: int = 0
    unreadable: tuple[str, ...] = ()
    """What is wrong with each segment that could not be read."""
    superseded: int = 0
    """Records that are left out: a later attempt of the run went back to their step or to one before."""

    @cached_property
    def keys(self) -> tuple[SeriesKey, ...]:
        """All series, in order of first appearance."""
        return common_series([b.layout for b in self.blocks])

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Steps of all records, in the order written."""
        return np.concatenate([np.empty(0, np.int64), *(b.steps for b in self.blocks)])

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """Times of all records."""
        return np.concatenate([np.empty(0), *(b.times for b in self.blocks)])

    def series(self, signal: str, layer: str = "") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(steps, values) of one series where it was measured; a measured value may be NaN or infinite."""
        key = SeriesKey(signal, layer)
        steps, values = [np.empty(0, np.int64)], [np.empty(0)]
        for block in self.blocks:
            column = block.layout.place.get(key)
            if column is not None:
                seen = block.measured[:, column]
                steps.append(block.steps[seen])
                values.append(block.values[seen, column])
        return np.concatenate(steps), np.concatenate(values)


def find_run(path: str | Path) -> Path:
    """The run folder at a path, or the newest run folder directly inside it; of an object store, a copy of it.

    Raises RunLogError.
    """
    path = local(path)
    if (path / META).exists() or not path.is_dir():
        return path
    runs = sorted((p.parent for p in path.glob(f"*/{META}")), key=lambda p: (p / META).stat().st_mtime)
    if not runs:
        raise RunLogError(f"{path} is neither a run folder (no {META}) nor a folder of runs.")
    return runs[-1]


def holds_run(path: Path) -> bool:
    """Whether the path is a run folder or directly contains one. Raises RunLogError for an object store."""
    path = local(path)
    return (path / META).exists() or next(path.glob(f"*/{META}"), None) is not None


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """All run folders at paths or directly inside them, by age. Raises RunLogError."""
    found: dict[Path, Path] = {}
    for path in map(local, paths):
        inside = [] if (path / META).exists() else [p.parent for p in path.glob(f"*/{META}")]
        runs = sorted(inside, key=lambda p: (p / META).stat().st_mtime) or [find_run(path)]
        found.update({run.resolve(): run for run in runs if run.resolve() not in found})
    return list(found.values())


def wait_for_run(path: Path, timeout: float = 10.0) -> RunLog:
    """Wait for a run folder and open it."""
    end = time.monotonic() + timeout
    while True:
        try:
            return RunLog(path)
        except RunLogError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


Place = TypeVar("Place", str | Path, Path)


def beside_targets(paths: Sequence[Place]) -> list[Place]:
    """Paths as a shell gives them for `stabwatch-runs/*`: without the Prometheus targets that lie beside the runs."""
    kept = [path for path in paths if not _holds_targets(Path(path))]
    return kept or list(paths)


def _holds_targets(path: Path) -> bool:
    if path.name != TARGETS or not path.is_dir() or (path / META).exists():
        return False
    return all(file.suffix == ".json" for file in path.iterdir()) and holds_run(path.parent)
