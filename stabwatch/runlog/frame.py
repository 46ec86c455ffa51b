"""Where the numbers are in a record: those of a segment have equal length, and equal bytes before their numbers."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Numbers = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]
"""Steps (n,), times (n,) and rows (n, width) of some records."""
_AT_A_TIME = 256
"""Records whose headers are compared at a time, so that many damaged ones cost no more than others."""


@dataclass(frozen=True)
class Frame:
    """The bytes of a record of a segment.

    size: of a record. head: the bytes before the body. step, time, values: offsets in the record. width: number of
    values.
    """

    size: int
    head: NDArray[np.uint8]
    step: int
    time: int
    values: int
    width: int

    def intact(self, data: bytes, start: int) -> int:
        """Number of records from `start` on with that head, up to the first other one."""
        records = self._records(data, start, min(_AT_A_TIME, (len(data) - start) // self.size))
        other = (records[:, : len(self.head)] != self.head).any(axis=1)
        return int(other.argmax()) if other.any() else len(other)

    def numbers(self, data: bytes, start: int, count: int) -> Numbers:
        """Steps, times and rows of some intact records."""
        records = self._records(data, start, count)
        step, time = (np.ascontiguousarray(records[:, at : at + 8]) for at in (self.step, self.time))
        rows = np.ascontiguousarray(records[:, self.values : self.values + 4 * self.width])
        return step.view(np.int64)[:, 0], time.view(np.float64)[:, 0], rows.view(np.float32)

    def fill(self, record: bytearray, step: int, time: float, values: NDArray[np.float32]) -> None:
        """Put numbers into the bytes of a record. Raises ValueError for another number of values."""
        if len(values) != self.width:
            raise ValueError(f"{len(values)} values for a record of {self.width}")
        struct.pack_into("=q", record, self.step, step)
        struct.pack_into("=d", record, self.time, time)
        record[self.values : self.values + 4 * self.width] = np.ascontiguousarray(values, dtype=np.float32).tobytes()

    def _records(self, data: bytes, start: int, count: int) -> NDArray[np.uint8]:
        return np.frombuffer(data, np.uint8, count * self.size, start).reshape(count, self.size)


def frame_of(body: pa.Buffer, batch: pa.RecordBatch, record: bytes) -> Frame:
    """Where a record of one row has the numbers of its columns. body: of its message, which the batch refers to."""
    columns = (batch.column(0), batch.column(1), batch.column(2).values)
    head = len(record) - body.size
    step, time, values = (head + column.buffers()[1].address - body.address for column in columns)
    return Frame(len(record), np.frombuffer(record, np.uint8, head), step, time, values, len(columns[2]))
