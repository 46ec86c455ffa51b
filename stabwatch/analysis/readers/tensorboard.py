"""TensorBoard event files, without TensorFlow: TFRecord frames around a few fields of protobuf.

Frame: length (u64), its checksum (u32), Event, checksum (u32). Event: 1 wall time (double), 2 step (varint),
5 Summary {1: Value {1: tag, 2: simple_value, 8: TensorProto {1: dtype, 4: content, 5: floats}}}.
Source: tensorflow/core/util/event.proto, summary.proto.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from stabwatch.analysis.logs import Log
from stabwatch.analysis.readers.gather import Gatherer
from stabwatch.analysis.readers.protobuf import fields
from stabwatch.analysis.readers.reader import Reader
from stabwatch.analysis.readers.source import Source
from stabwatch.errors import LogError

_LENGTH, _DOUBLE, _FLOAT = struct.Struct("<Q"), struct.Struct("<d"), struct.Struct("<f")
_LARGEST = 1 << 30


def _sniff(source: Source) -> bool:
    head = source.head
    if len(head) < 24:
        return False
    (length,) = _LENGTH.unpack_from(head)
    # The first event says `brain.Event:2`, in field 3, after its wall time.
    return 8 < length < 4096 and head[12:13] == b"\x09" and b"brain.Event" in head[:64]


def _read(source: Source) -> Log:
    return read_files(source.path, [source.path])


def read_files(path: Path, files: list[Path]) -> Log:
    """One run out of the event files of a folder, in the order of their names."""
    gatherer, notes, events = Gatherer(path.name), [], []
    for file in files:
        found, whole = _events(file)
        events += found
        if not whole:
            notes.append(f"{file.name} ends in the middle of an event.")
    for step, wall, values in events:
        gatherer.add(step, -1, values, wall)
    notes.insert(0, f"{len(events)} events with scalars in {len(files)} file{'s' * (len(files) != 1)}.")
    return Log(path, "TensorBoard", (gatherer.run(),), tuple(notes))


def _events(path: Path) -> tuple[list[tuple[int, float, dict[str, float]]], bool]:
    """Step, wall time and scalars of each event, and whether the file ends where an event does."""
    out: list[tuple[int, float, dict[str, float]]] = []
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at, size = 0, len(data)
            while at + 16 <= size:
                (length,) = _LENGTH.unpack_from(data, at)
                if length > _LARGEST or at + 16 + length > size:
                    return out, False
                event = _event(data[at + 12 : at + 12 + length])
                if event is not None:
                    out.append(event)
                at += 16 + length
            return out, at == size
    except (OSError, ValueError, IndexError, struct.error) as error:
        if out:
            return out, False
        raise LogError(f"{path} cannot be read as TensorBoard events: {error}.") from error


def _event(data: bytes) -> tuple[int, float, dict[str, float]] | None:
    step, wall, values = 0, float("nan"), {}
    for field, value in fields(data):
        if field == 1 and isinstance(value, bytes):
            (wall,) = _DOUBLE.unpack(value)
        elif field == 2 and isinstance(value, int):
            step = value if value < 1 << 63 else value - (1 << 64)
        elif field == 5 and isinstance(value, bytes):
            for inner, part in fields(value):
                if inner == 1 and isinstance(part, bytes):
                    found = _scalar(part)
                    if found:
                        values[found[0]] = found[1]
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
