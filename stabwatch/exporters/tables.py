"""A run log as a table, long or wide, streamed; for CSV, Parquet and whatever else takes record batches.

Long: one row for each measured value: step, time, signal, layer, value. Wide: one row for each record: step, time, and
a column `signal` or `signal/layer` for each series, null where it was not measured. A measured value may be NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from stabwatch.exporters.declared import adopt, own_name
from stabwatch.exporters.prometheus import clean
from stabwatch.runlog import RecordBatch, SeriesKey
from stabwatch.runlog.schema import common_series
from stabwatch.runlog.source import Source

VALUES = 1 << 20
"""Values in memory at a time."""
GROUP = 1 << 20
"""Values in a row group of Parquet: many small pieces are written as one."""
_TIME = pa.timestamp("us", tz="UTC")
_NAMES = pa.dictionary(pa.int32(), pa.string())
_RECORD = [("step", pa.int64()), ("time", _TIME)]
LONG = pa.schema([*_RECORD, ("signal", _NAMES), ("layer", _NAMES), ("value", pa.float64())])
Progress = Callable[[Source], None]


def column(key: SeriesKey) -> str:
    """The name of a series as a column, or as a tag of TensorBoard, which groups by what is before the slash."""
    name = own_name(key)
    return clean(f"{name.signal}/{name.layer}" if name.layer else name.signal)


def pieces(log: Source, progress: Progress | None = None) -> Iterator[RecordBatch]:
    """The records of a log, as many at a time as memory allows."""
    for block in log.stream():
        records = max(1, VALUES // max(1, len(block.table.keys)))
        for start in range(0, len(block), records):
            rows = slice(start, start + records)
            yield RecordBatch(block.table, block.steps[rows], block.times[rows], block.rows[rows])
        if progress is not None:
            progress(log)


class Table:
    """The schema of an export, and its record batches."""

    def __init__(self, log: Source, wide: bool, progress: Progress | None = None) -> None:
        self._log = log
        self._wide = wide
        self._progress = progress
        adopt(log.meta.signals)
        self._keys = common_series(log.tables)
        columns = [(column(key), pa.float64()) for key in self._keys]
        self.schema: pa.Schema = pa.schema([*_RECORD, *columns]) if wide else LONG

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for block in pieces(self._log, self._progress):
            yield self._as_wide(block) if self._wide else _as_long(block)

    def _as_wide(self, block: RecordBatch) -> pa.RecordBatch:
        at = {key: i for i, key in enumerate(block.table.keys)}
        values, measured = block.values, block.measured
        empty = pa.array(np.empty(len(block)), mask=np.ones(len(block), bool))
        columns = [
            pa.array(values[:, at[key]], mask=~measured[:, at[key]]) if key in at else empty for key in self._keys
        ]
        arrays = [pa.array(block.steps), _stamps(block.times), *columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _as_long(block: RecordBatch) -> pa.RecordBatch:
    rows, columns = np.nonzero(block.measured)
    keys = [own_name(key) for key in block.table.keys]
    signals = np.array([clean(key.signal) for key in keys], dtype=object)
    layers = np.array([clean(key.layer) for key in keys], dtype=object)
    arrays = [
        pa.array(block.steps[rows]),
        _stamps(block.times[rows]),
        pa.array(signals[columns]).dictionary_encode(),
        pa.array(layers[columns]).dictionary_encode(),
        pa.array(block.values[rows, columns]),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=LONG)


def _stamps(times: NDArray[np.float64]) -> pa.Array:
    unknown = np.isnan(times)
    return pa.array(np.round(np.where(unknown, 0, times) * 1e6).astype(np.int64), mask=unknown).cast(_TIME)


def write_parquet(log: Source, path: Path, wide: bool = False, progress: Progress | None = None) -> int:
    """Write a Parquet file; gives the number of rows."""
    import pyarrow.parquet as pq

    table = Table(log, wide, progress)
    facts = {"stabwatch.run": log.meta.run, "stabwatch.meta": log.meta.to_json()}
    with pq.ParquetWriter(path, table.schema.with_metadata(facts), compression="zstd") as writer:
        return _write(table, lambda part: writer.write_table(part, row_group_size=GROUP))


def write_csv(log: Source, out: BinaryIO, wide: bool = False, progress: Progress | None = None) -> int:
    """Write CSV with a header; `time` in seconds since the epoch, NaN as `nan`, null as nothing. Gives the rows."""
    import pyarrow.csv as csv

    table = Table(log, wide, progress)
    plain = {_TIME: pa.float64(), _NAMES: pa.string()}
    schema = pa.schema([pa.field(f.name, plain.get(f.type, f.type)) for f in table.schema])
    with closing(csv.CSVWriter(out, schema)) as writer:
        return _write(table, lambda part: writer.write_table(_as_plain(part, schema)))


def _as_plain(part: pa.Table, schema: pa.Schema) -> pa.Table:
    seconds = compute.divide(part["time"].cast(pa.int64()).cast(pa.float64()), 1e6)
    return part.set_column(1, "time", seconds).cast(schema)


def _write(table: Table, write: Callable[[pa.Table], Any]) -> int:
    rows, batches, values = 0, [], 0
    for batch in table:
        batches.append(batch)
        rows, values = rows + batch.num_rows, values + batch.num_rows * batch.num_columns
        if values >= GROUP:
            write(pa.Table.from_batches(batches))
            batches, values = [], 0
    if batches or not rows:
        write(pa.Table.from_batches(batches, table.schema))
    return rows
