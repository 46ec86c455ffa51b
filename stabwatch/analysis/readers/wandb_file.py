"""Weights & Biases' offline file: a LevelDB log of protobuf records.

File: `:W&B`, a magic number (u16), a version (u8). Then blocks of 32 KiB with frames: checksum (u32), length (u16),
type (u8: 1 whole, 2 first, 3 middle, 4 last). Record: 2 HistoryRecord {1: HistoryItem {1: key, 2: nested key, 16: value
as JSON}, 2: HistoryStep {1: number}}. Source: wandb/proto/wandb_internal.proto and LevelDB's log format.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator

from stabwatch.analysis.readers.documents import flat
from stabwatch.analysis.readers.file import LogFile, Progress
from stabwatch.analysis.readers.log import Log
from stabwatch.analysis.readers.protobuf import fields
from stabwatch.analysis.readers.reader import Reader
from stabwatch.analysis.readers.run_builder import RunBuilder
from stabwatch.errors import LogError

_BLOCK = 1 << 15
_FRAME = struct.Struct("<IHB")
_HEADER = 7
_COUNTERS = ("trainer/global_step", "train/global_step")
"""Training steps as logged by Lightning and Hugging Face; W&B's step counts calls of `log`."""


def _records(data: bytes, progress: Progress) -> Iterator[bytes]:
    """Whole records; stops at a torn or damaged frame."""
    at, kept = _HEADER, b""
    while at + _FRAME.size <= len(data):
        room = _BLOCK - at % _BLOCK
        if room < _FRAME.size:
            at += room
            progress(at, len(data))
            continue
        _, length, kind = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        if kind not in (1, 2, 3, 4) or end > len(data):
            return
        part = data[at + _FRAME.size : end]
        kept = part if kind in (1, 2) else kept + part
        if kind in (1, 4):
            yield kept
        at = end


def _read(source: LogFile) -> Log:
    builder, counter = RunBuilder(source.path.stem), None
    try:
        for record in _records(source.read(1 << 31), source.progress):
            for field, value in fields(record):
                if field == 2 and isinstance(value, bytes):
                    counter = _history(builder, value, counter)
    except (ValueError, IndexError) as error:
        if not len(builder):
            raise LogError(f"{source.path} cannot be read as a W&B file: {error}.") from error
    return Log(source.path, "W&B offline", (builder.run(),))


def _history(builder: RunBuilder, data: bytes, counter: str | None) -> str | None:
    """Add one record. counter: the column that counts steps, from the first record; it is also the result."""
    values: dict[str, float] = {}
    step, time = len(builder), math.nan
    for field, part in fields(data):
        if field == 2 and isinstance(part, bytes):
            step = next((v for f, v in fields(part) if f == 1 and isinstance(v, int)), step)
        elif field == 1 and isinstance(part, bytes):
            key, value = _item(part)
            if key == "_step" and isinstance(value, int | float):
                step = int(value)
            elif key == "_timestamp" and isinstance(value, int | float):
                time = float(value)
            elif not key.startswith("_"):
                values |= flat({key: value})
    if not values:
        return counter
    if not len(builder):
        counter = next((key for key in _COUNTERS if key in values), None)
    if counter is not None:
        counted = values.pop(counter, math.nan)
        step = int(counted) if abs(counted) < 1 << 62 else builder.last_step or 0
    builder.add(step, -1, values, time)
    return counter


def _item(data: bytes) -> tuple[str, object]:
    keys, value = [], None
    for field, part in fields(data):
        if not isinstance(part, bytes):
            continue
        if field in (1, 2):
            keys.append(part.decode("utf-8", "replace"))
        elif field == 16:
            try:
                value = json.loads(part)
            except (ValueError, RecursionError):
                value = None
    return "/".join(k for k in keys if k), value


READER = Reader(
    "W&B offline",
    "`run-*.wandb` of Weights & Biases, as `WANDB_MODE=offline` leaves it",
    lambda source: source.head[:4] == b":W&B",
    _read,
)
