"""TensorBoard event files, without TensorFlow: TFRecord frames around a few fields of protobuf.

Frame: length (u64), its checksum (u32), Event, checksum (u32). Event: 1 wall time (double), 2 step (varint),
5 Summary {1: Value {1: tag, 2: simple_value, 8: TensorProto {1: dtype, 4: content, 5: floats}}}.
Source: tensorflow/core/util/event.proto, summary.proto.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.file import LogFile, Progress
from stabwatch.analysis.readers.log import Log
from stabwatch.analysis.readers.points import Points
from stabwatch.analysis.readers.protobuf import fields
from stabwatch.analysis.readers.reader import Reader
from stabwatch.errors import LogError

_LENGTH, _DOUBLE, _FLOAT = struct.Struct("<Q"), struct.Struct("<d"), struct.Struct("<f")
_LARGEST = 1 << 30
_AT_ONCE = 1 << 24
"""Bytes of events that are processed together."""
_LAYOUTS = 256


def _sniff(source: LogFile) -> bool:
    head = source.head
    if len(head) < 24:
        return False
    (length,) = _LENGTH.unpack_from(head)
    # The first event has `brain.Event:2` in field 3, after its wall time.
    return 8 < length < 4096 and head[12:13] == b"\x09" and b"brain.Event" in head[:64]


def _read(source: LogFile) -> Log:
    return read_files(source.path, [source.path], source.progress)


def read_files(path: Path, files: list[Path], progress: Progress | None = None) -> Log:
    """One run from the event files of a folder, in the order of their names."""
    points, notes = Points(), []
    sizes = [file.stat().st_size for file in files]
    for file, size, before in zip(files, sizes, accumulate(sizes, initial=0), strict=False):
        points.next_file(size)
        for read in _read_file(file, points):
            if progress is not None:
                progress(before + read, sum(sizes))
        if read < size:
            notes.append(f"{file.name} ends in the middle of an event.")
    notes.insert(0, f"{points.count} scalars in {len(files)} file{'s' * (len(files) != 1)}.")
    return Log(path, "TensorBoard", (points.run(path.name),), tuple(notes))


def _read_file(path: Path, points: Points) -> Iterator[int]:
    """Add all scalars of a file. Yields the bytes read at intervals, and finally the readable bytes."""
    found, at = points.count, 0
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            while True:
                starts, lengths, end = _frames(data, at)
                for length in np.unique(lengths).tolist():
                    _of_one_length(data, starts[lengths == length], length, points)
                yield end
                if end == at:
                    return
                at = end
    except (OSError, ValueError, IndexError, struct.error) as error:
        if points.count == found:
            raise LogError(f"{path} cannot be read as TensorBoard events: {error}.") from error
        yield at


def _frames(data: mmap.mmap, at: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Start, length and end of the next events."""
    starts, lengths = array("q"), array("q")
    size, unpack, stop = len(data), _LENGTH.unpack_from, at + _AT_ONCE
    while at + 16 <= size and at < stop:
        (length,) = unpack(data, at)
        if length > _LARGEST or at + 16 + length > size:
            break
        starts.append(at + 12)
        lengths.append(length)
        at += 16 + length
    return np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64), at


def _of_one_length(data: mmap.mmap, starts: NDArray[np.int64], length: int, points: Points) -> None:
    """Events of one length. Those of one tag differ only in wall time, step and value, and are read at once."""
    for part in np.array_split(starts, max(1, len(starts) * length // _AT_ONCE)):
        rows = np.frombuffer(data, dtype=np.uint8)[part[:, None] + np.arange(length)]
        left = np.arange(len(part))
        for _ in range(_LAYOUTS):
            if not len(left):
                break
            first = rows[left[0]]
            layout = _layout(first.tobytes())
            same = np.zeros(len(left), dtype=bool)
            same[0] = True
            if layout is not None:
                same = (rows[left][:, layout.fixed] == first[layout.fixed]).all(axis=1)
                chosen = left[same]
                points.add(layout.tag, part[chosen], *layout.read(rows[chosen]))
            else:
                _one(first.tobytes(), int(part[left[0]]), points)
            left = left[~same]
        for row in left:
            _one(rows[row].tobytes(), int(part[row]), points)


def _one(data: bytes, at: int, points: Points) -> None:
    event = _event(data)
    if event is not None:
        step, wall, values = event
        for tag, value in values.items():
            points.add(tag, *(np.array([x]) for x in (at, step, wall, value)))


@dataclass(frozen=True)
class _Layout:
    """Positions of the numbers in an event with one scalar."""

    tag: str
    fixed: NDArray[np.int64]
    step: slice
    value: int

    def read(self, rows: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Steps, wall times, values of (events, length) bytes."""
        wall = np.ascontiguousarray(rows[:, 1:9]).view("<f8")[:, 0]
        value = np.ascontiguousarray(rows[:, self.value : self.value + 4]).view("<f4")[:, 0]
        digits = rows[:, self.step].astype(np.int64) & 127
        step = (
            (digits << (7 * np.arange(digits.shape[1]))).sum(axis=1) if digits.size else np.zeros(len(rows), np.int64)
        )
        return step, wall.astype(np.float64), value.astype(np.float64)


def _layout(data: bytes) -> _Layout | None:
    """Positions in an event of the usual form: wall time, step, one float value; None for any other event."""
    if len(data) < 20 or data[0] != 0x09:
        return None
    at = 9
    begin = end = at
    if data[at] == 0x10:  # step; left out where it is zero
        begin = end = at + 1
        while data[end] > 127:
            end += 1
        end += 1
        at = end
    _, event = _after_wall(data, at)
    if event is None or end - begin > 8:
        return None
    tag, value = event
    variable = {*range(1, 9), *range(begin, end), *range(value, value + 4)}
    fixed = np.array([i for i in range(len(data)) if i not in variable], dtype=np.int64)
    return _Layout(tag, fixed, slice(begin, end), value)


def _after_wall(data: bytes, at: int) -> tuple[int, tuple[str, int] | None]:
    """Tag and position of the value in a summary with one simple value that ends with the event."""
    parts = list(fields(data[at:]))
    if len(parts) != 1 or parts[0][0] != 5 or not isinstance(parts[0][1], bytes):
        return at, None
    values = list(fields(parts[0][1]))
    if len(values) != 1 or values[0][0] != 1 or not isinstance(values[0][1], bytes):
        return at, None
    inner = list(fields(values[0][1]))
    if [f for f, _ in inner] != [1, 2] or not isinstance(inner[0][1], bytes):
        return at, None
    return at, (inner[0][1].decode("utf-8", "replace"), len(data) - 4)


def _event(data: bytes) -> tuple[int, float, dict[str, float]] | None:
    step, wall, values = 0, float("nan"), {}
    for field, value in fields(data):
        if field == 5 and isinstance(value, bytes):
            for inner, part in fields(value):
                if inner == 1 and isinstance(part, bytes):
                    found = _scalar(part)
                    if found:
                        values[found[0]] = found[1]
        elif field == 1 and isinstance(value, bytes):
            (wall,) = _DOUBLE.unpack(value)
        elif field == 2 and isinstance(value, int):
            step = value if value < 1 << 63 else value - (1 << 64)
    return (step, wall, values) if values else None


def _scalar(data: bytes) -> tuple[str, float] | None:
    tag, value = "", None
    for field, part in fields(data):
        if field == 1 and isinstance(part, bytes):
            tag = part.decode("utf-8", "replace")
        elif field == 2 and isinstance(part, bytes) and len(part) == 4:
            (value,) = _FLOAT.unpack(part)
        elif field == 8 and isinstance(part, bytes):
            value = _tensor(part)
    return (tag, value) if tag and value is not None else None


def _tensor(data: bytes) -> float | None:
    """A tensor of one number: float or double."""
    parts = dict(fields(data))
    kind = parts.get(1)
    for field in (5, 4, 6):
        raw = parts.get(field)
        if isinstance(raw, bytes):
            if kind == 1 and len(raw) == 4:
                return float(_FLOAT.unpack(raw)[0])
            if kind == 2 and len(raw) == 8:
                return float(_DOUBLE.unpack(raw)[0])
    return None


READER = Reader(
    "TensorBoard",
    "event files (`events.out.tfevents.*`) of TensorFlow, PyTorch, JAX; a folder of them is one run",
    _sniff,
    _read,
)
