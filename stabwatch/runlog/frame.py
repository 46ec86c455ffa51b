"""Where the numbers are in a record: records of equal width have equal length, and equal bytes before their numbers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MARK = 32
"""Bytes with which every record of a segment begins, whatever its width."""


@dataclass(frozen=True)
class Frame:
    """The bytes of a record.

    size: of a record. head: the bytes before the body. step, time, values: offsets in the record. width: number of
    values.
    """

    size: int
    head: bytes
    step: int
    time: int
    values: int
    width: int

    @cached_property
    def kind(self) -> np.dtype[np.void]:
        """A record as NumPy sees it, with the fields step, time and values."""
        fields: Any = {
            "names": ["step", "time", "values"],
            "formats": ["=i8", "=f8", ("=f4", (self.width,))],
            "offsets": [self.step, self.time, self.values],
            "itemsize": self.size,
        }
        return np.dtype(fields)

    def count(self, data: bytes, start: int) -> int:
        """Number of complete records of this frame, from `start` on."""
        begin, size, head, last = start, self.size, self.head, len(data) - self.size
        while start <= last and data.startswith(head, start):
            start += size
        return (start - begin) // size

    def records(self, data: bytes, start: int, count: int) -> NDArray[np.void]:
        """Complete records, (count,) of `kind`."""
        return np.frombuffer(data, self.kind, count, start)

    def fill(self, record: bytearray, step: int, time: float, values: NDArray[np.float32]) -> None:
        """Put numbers into the bytes of a record."""
        struct.pack_into("=q", record, self.step, step)
        struct.pack_into("=d", record, self.time, time)
        record[self.values : self.values + 4 * self.width] = values.tobytes()

    def most(self, width: int) -> int:
        """Size of a record of another width."""
        return self.size + 4 * (width + width % 2) - 4 * (self.width + self.width % 2)


def frame_of(message: pa.Message, schema: pa.Schema, record: bytes) -> Frame:
    """Where a record of one row has the numbers of its columns. Raises pa.ArrowException if it is another one."""
    batch = pa.ipc.read_record_batch(message, schema)
    batch.validate(full=True)
    if len(batch) != 1:
        raise pa.ArrowInvalid("a record of one row was expected")
    step, time, lists = batch.columns
    values = lists.values
    buffers = [column.buffers()[1] for column in (step, time, values)]
    whole = pa.types.is_fixed_size_list(lists.type) or _ends(lists) == [0, len(values)]
    if not whole or [b.size for b in buffers] != [8, 8, 4 * len(values)]:
        raise pa.ArrowInvalid("its columns have other lengths than one row has")
    head = len(record) - message.body.size
    first, second, third = (head + buffer.address - message.body.address for buffer in buffers)
    return Frame(len(record), record[:head], first, second, third, len(values))


def _ends(lists: pa.Array) -> list[int]:
    """Where the list of the first row begins and ends. `flatten` would import pyarrow.compute, a tenth of a second."""
    return np.frombuffer(lists.buffers()[1], np.int32, 2).tolist()


class Frames:
    """The frames of a segment that were met so far.

    width: number of columns of its layout. fixed: all its records have that width.
    """

    def __init__(self, width: int, fixed: bool) -> None:
        self._width, self._fixed = width, fixed
        self._known: dict[bytes, Frame] = {}
        self._head = 0
        self.mark = b""
        self.most = 0
        """Size of a record that has all columns; 0 as long as no record was met, as `mark` is empty."""

    def at(self, data: bytes, start: int) -> Frame | None:
        """The frame of the record that begins there, if it is known."""
        return self._known.get(data[start : start + self._head])

    def add(self, frame: Frame) -> Frame:
        """A frame that was met. Raises pa.ArrowInvalid if it is not like the others."""
        if not 0 < frame.width <= self._width or (self._fixed and frame.width < self._width):
            raise pa.ArrowInvalid(f"a record of {frame.width} values where there are {self._width} columns")
        for other in self._known.values():
            if _shape(other) != _shape(frame) or other.most(frame.width) != frame.size:
                raise pa.ArrowInvalid("a record whose numbers are elsewhere than in the first one")
            break
        self._known[frame.head] = frame
        self._head, self.mark, self.most = len(frame.head), frame.head[:MARK], frame.most(self._width)
        return frame


def _shape(frame: Frame) -> tuple[bytes, int, int, int, int]:
    return frame.head[:MARK], len(frame.head), frame.step, frame.time, frame.values


def written_width(values: NDArray[np.float32]) -> int:
    """Number of columns that are written of a record: up to the last one with a number, and at most an eighth more.

    So the records of a run have few different widths.
    """
    numbers = values == values
    last = max(1, len(values) - int(numbers[::-1].argmax()) if numbers.any() else 1)
    unit = max(16, 1 << max(0, last.bit_length() - 4))
    return min(len(values), -(-last // unit) * unit)
